"""Runs: recipes in, records out; comparisons, tables and plots."""
