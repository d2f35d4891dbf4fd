"""Experiments: data sets, networks, runs on disk, training, benchmarks."""
