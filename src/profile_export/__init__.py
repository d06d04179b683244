"""Merge scattered customer data into one row per person and export it as a tracked job."""
