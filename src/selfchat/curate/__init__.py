"""What survives: checks, duplicates, mixing, the split into train and held-out, statistics."""
