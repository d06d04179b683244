"""What an operator can set, from options and `PROFILE_EXPORT_*` variables."""
