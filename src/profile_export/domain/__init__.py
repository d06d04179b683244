"""What is true: standard library only, no I/O, no clock, no ids made here."""
