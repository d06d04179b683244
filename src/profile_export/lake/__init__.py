"""Files become a batch."""
