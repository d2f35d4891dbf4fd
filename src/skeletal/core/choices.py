"""Refuse a name that does not exist, and say which one was probably meant."""

from collections.abc import Iterable
from difflib import get_close_matches


def require(what: str, value: object, choices: Iterable[str]) -> None:
    """Make sure that `value` is one of `choices`.

    Raises:
        ValueError: naming the nearest choice, if one is near, and all of them.

    """
    choices = list(choices)
    if value not in choices:
        near = get_close_matches(str(value), choices, n=1)
        meant = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown {what} {value!r}.{meant} There are {', '.join(choices)}")
