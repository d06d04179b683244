"""Uploads: bytes arrive, and become a batch that counts, or nothing at all."""
