"""Masks that move while training: when weights go and come, and which."""
