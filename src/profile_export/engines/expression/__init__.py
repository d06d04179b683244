"""A plan as one expression over unbound tables."""
