"""Batches, and the files that the store names."""
