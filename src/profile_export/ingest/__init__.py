"""Bytes become checked Parquet and rejected rows, one file per format."""
