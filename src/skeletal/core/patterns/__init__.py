"""Masks with a pattern: which weights stay or go together, and which of them the scores choose."""
