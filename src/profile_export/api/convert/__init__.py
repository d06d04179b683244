"""Messages to domain and back. Pure."""
