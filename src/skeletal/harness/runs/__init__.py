"""Whole jobs: an experiment, a measurement, a review, an estimate."""
