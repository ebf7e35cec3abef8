"""Rerankers: a cross-encoder scores how well a document answers a query."""
