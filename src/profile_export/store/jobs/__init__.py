"""Jobs: claimed, held, moved, watched."""
