"""What the other packages share: errors, files, digests, tables."""
