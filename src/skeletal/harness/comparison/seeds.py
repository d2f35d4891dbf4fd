"""Runs that differ in their seeds alone, and runs that repeat a seed."""

from collections.abc import Hashable, Iterable
from statistics import fmean


def by_seed(results: Iterable[tuple[Hashable, float]]) -> list[float]:
    """Of each seed one number, in the order they come: the mean of the runs that repeat it."""
    seeds: dict[Hashable, list[float]] = {}
    for seed, value in results:
        seeds.setdefault(seed, []).append(value)
    return [fmean(values) for values in seeds.values()]
