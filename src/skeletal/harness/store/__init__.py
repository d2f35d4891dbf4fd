"""A run on disk: its folder, its lock, its environment, its files."""
