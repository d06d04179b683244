"""Measures what the design promises: `python -m benchmarks [--short] [names…]`."""
