"""What people may choose: names as they write them, bounds as they read them; others are refused with a remedy."""

from collections.abc import Iterable
from decimal import ROUND_CEILING, ROUND_FLOOR, Context
from difflib import get_close_matches


def spelled(value: str, choices: Iterable[str]) -> str:
    """The choice that differs from `value` only in case and in `-`, `_` or blanks; else `value` itself."""
    choices = list(choices)
    if value in choices:
        return value
    return next((choice for choice in choices if same_name(choice, value)), value)


def named(what: str, value: str, choices: Iterable[str]) -> str:
    """The choice that `value` means, however it is written.

    Raises:
        ValueError: there is none; see `require`.

    """
    choices = list(choices)
    found = spelled(value, choices) if isinstance(value, str) else value
    require(what, found, choices)
    return found


def same_name(one: str, other: str) -> bool:
    """Whether two names differ only in case and in `-`, `_` or blanks."""
    return plain(one) == plain(other)


def plain(name: str) -> str:
    """A name in lower case, with hyphens between its words."""
    return name.strip().casefold().replace("_", "-").replace(" ", "-")


def require(what: str, value: object, choices: Iterable[str]) -> None:
    """Make sure that `value` is one of `choices`.

    Raises:
        ValueError: naming the nearest choice, if one is near, and all of them.

    """
    choices = list(choices)
    if value not in choices:
        near = get_close_matches(plain(str(value)), map(plain, choices), n=1)
        meant = f" Did you mean {spelled(near[0], choices)!r}?" if near else ""
        raise ValueError(f"unknown {what} {value!r}.{meant} There are {', '.join(choices)}")


def at_most(bound: float) -> str:
    """A bound from above in six digits that keep to it, so that the number a message names is one that works."""
    return _digits(bound, ROUND_FLOOR)


def at_least(bound: float) -> str:
    """A bound from below; see `at_most`."""
    return _digits(bound, ROUND_CEILING)


def _digits(bound: float, rounding: str) -> str:
    return f"{Context(prec=6, rounding=rounding).create_decimal(repr(bound)):f}"
