"""How often a run writes its checkpoint, where an epoch may take no longer than that."""

import time
from collections.abc import Callable

SHARE = 20
"""training goes on for this many times as long as a checkpoint takes to write before the next one"""


class Pace:
    """Lets a checkpoint wait while repeating what the last one lacks would take less time than writing did so far.

    Args:
        every: write each one, however fresh the last is.
        runs: how many take turns in this process, which all wait while one of them writes.
        clock: seconds.

    """

    def __init__(self, *, every: bool, runs: int = 1, clock: Callable[[], float] = time.perf_counter) -> None:
        self._every, self._clock, self._not_before = every, clock, float("-inf")
        self._share = SHARE * runs
        self.saved: tuple[int, int] | None = None
        """the epoch and batch of the last checkpoint of this session"""

    def due(self) -> bool:
        """Whether the last checkpoint is old enough."""
        return self._every or self._clock() >= self._not_before

    def write(self, save: Callable[[], None], at: tuple[int, int]) -> None:
        """Write a checkpoint of an epoch and batch, unless it is the last one."""
        if at == self.saved:
            return
        began = self._clock()
        save()
        ended = self._clock()
        self.saved, self._not_before = at, ended + self._share * (ended - began)
