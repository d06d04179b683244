"""Messages to domain and back. Pure, but for `Pages`, which asks whose call it is and for the key of tokens."""
