"""Compiled loops over a plan's tables."""
