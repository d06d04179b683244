"""What happened is written down."""
