"""How many weights are kept after each step: functions `(total, kept, steps) -> counts`."""

import math
from collections.abc import Callable

Schedule = Callable[[int, int, int], list[int]]


def exponential(total: int, kept: int, steps: int) -> list[int]:
    """k_t = exp{α log k + (1-α) log m}, α = t/T: each step keeps the same fraction (paper, Eq. 9)."""
    ratio = math.log(kept / total)
    return strictly_falling([round(total * math.exp(ratio * t / steps)) for t in range(1, steps + 1)], total, kept)


def linear(total: int, kept: int, steps: int) -> list[int]:
    """k_t = αk + (1-α)m, α = t/T: each step prunes the same number (paper, Eq. 8)."""
    return strictly_falling([round(total - (total - kept) * t / steps) for t in range(1, steps + 1)], total, kept)


def strictly_falling(counts: list[int], total: int, kept: int) -> list[int]:
    """Round to a sequence that ends at `kept` and falls at every step for which there is a weight to spare."""
    steps = len(counts)
    roomy = total - kept >= steps
    fallen, above = [], total
    for t, count in enumerate(counts, 1):
        above = max(min(count, above - 1), kept + steps - t) if roomy else max(total - t, kept)
        fallen.append(above)
    return fallen


SCHEDULES: dict[str, Schedule] = {"exponential": exponential, "linear": linear}


def visit(schedule: Schedule, total: int, kept: int, steps: int) -> list[int]:
    """The counts of a schedule, checked: whole numbers in [kept, total], never rising, the last equal to `kept`.

    Raises:
        ValueError: the schedule, perhaps the caller's own, breaks one of these.

    """
    counts = list(schedule(total, kept, steps))
    name = getattr(schedule, "__name__", repr(schedule))
    if not counts or counts[-1] != kept:
        raise ValueError(f"schedule {name} ends at {counts[-1:] or 'nothing'}; it has to end at kept = {kept}")
    if any(int(count) != count for count in counts) or max(counts) > total or counts != sorted(counts, reverse=True):
        raise ValueError(f"schedule {name} gives {counts}; counts have to be whole, at most {total}, and never rise")
    return [int(count) for count in counts]
