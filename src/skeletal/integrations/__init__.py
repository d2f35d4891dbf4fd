"""Skeletons inside other libraries' training loops."""
