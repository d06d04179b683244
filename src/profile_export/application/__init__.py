"""What a caller can ask for, once, whoever asks: use cases, and the ports they need."""
