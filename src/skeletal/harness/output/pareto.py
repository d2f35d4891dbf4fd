"""Which choices nobody beats: none costs less and brings as much, and none brings more for as little."""

from collections.abc import Sequence


def on_front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Which of the points (cost, gain) lie on the Pareto front; equal points all do.

    Args:
        points: less cost is better, and so is more gain.

    """
    best: dict[float, float] = {}  # by cost, the most that is gained there
    for cost, gain in points:
        best[cost] = max(gain, best.get(cost, gain))
    front, most = set(), float("-inf")
    for cost in sorted(best):
        if best[cost] > most:
            most = best[cost]
            front.add((cost, most))
    return [point in front for point in points]
