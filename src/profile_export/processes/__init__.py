"""The one supervisor of child processes: pools, limits, fairness, cancel; and the program that a child runs."""
