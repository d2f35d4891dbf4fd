"""Names as people write them; an unknown name is refused, with the one that was probably meant."""

from collections.abc import Iterable
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
