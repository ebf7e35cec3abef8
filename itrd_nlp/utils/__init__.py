"""What every other package uses: errors, files, digests, tables."""
