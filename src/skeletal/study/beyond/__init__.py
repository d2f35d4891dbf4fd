"""What is not in the paper: advice, sanity checks, sweeps."""
