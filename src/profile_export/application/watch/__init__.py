"""Watches of jobs: readings that many watchers share. The door brings the encoder, and writes the bytes."""
