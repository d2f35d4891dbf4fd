"""The host: what its CPU is, and whether the engine's kernels can be trusted on it."""
