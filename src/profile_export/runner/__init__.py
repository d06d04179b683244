"""A job comes due: claim, plan, resolve, run, commit."""
