"""What tenants have: datasets, batches, files, and how much of each."""
