"""Names as people write them; one that does not exist is refused, and the one that was probably meant is named."""

from collections.abc import Iterable
from difflib import get_close_matches


def spelled(value: str, choices: Iterable[str]) -> str:
    """The choice that differs from `value` in case and in `-` or `_` only; `value` itself where there is none."""
    plain = _plain(value)
    return next((choice for choice in choices if _plain(choice) == plain), value)


def same_name(one: str, other: str) -> bool:
    """Whether two names differ in case and in `-` or `_` only."""
    return _plain(one) == _plain(other)


def _plain(name: str) -> str:
    return name.casefold().replace("_", "-")


def require(what: str, value: object, choices: Iterable[str]) -> None:
    """Make sure that `value` is one of `choices`.

    Raises:
        ValueError: naming the nearest choice, if one is near, and all of them.

    """
    choices = list(choices)
    if value not in choices:
        near = get_close_matches(_plain(str(value)), map(_plain, choices), n=1)
        meant = f" Did you mean {spelled(near[0], choices)!r}?" if near else ""
        raise ValueError(f"unknown {what} {value!r}.{meant} There are {', '.join(choices)}")
