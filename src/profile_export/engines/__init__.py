"""A plan becomes files."""
