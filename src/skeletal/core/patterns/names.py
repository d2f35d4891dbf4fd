"""How patterns are written. Without torch: the command line checks them before it loads anything."""

import re

from skeletal.core.choices import plain

CHANNELS, FAN_IN = "channels", "fan-in"
_N_OF_M = re.compile(r"(\d+):(\d+)")
_BLOCK = re.compile(r"(\d+)x(\d+)")


def canonical(pattern: str) -> str:
    """The name of a pattern as masks record it: in lower case, with hyphens.

    Raises:
        ValueError: there is no such pattern.

    """
    name = plain(pattern)
    if n_of_m(name) or block(name) or name in (CHANNELS, FAN_IN):
        return name
    raise ValueError(
        f"unknown pattern {pattern!r}. There are {CHANNELS}, {FAN_IN}, N:M (at most N of M inputs that follow each"
        " other, such as 2:4, N at most M) and RxC (blocks of R outputs and C inputs, such as 4x4)"
    )


def n_of_m(name: str) -> tuple[int, int] | None:
    """(N, M) of a pattern N:M, 1 <= N <= M; None of any other."""
    found = _N_OF_M.fullmatch(name)
    numbers = (int(found[1]), int(found[2])) if found else (0, 0)
    return numbers if 1 <= numbers[0] <= numbers[1] else None


def block(name: str) -> tuple[int, int] | None:
    """(R, C) of a pattern RxC, both at least 1; None of any other."""
    found = _BLOCK.fullmatch(name)
    numbers = (int(found[1]), int(found[2])) if found else (0, 0)
    return numbers if min(numbers) >= 1 else None
