"""What the commands share: the connection, how answers look, how a job is followed."""
