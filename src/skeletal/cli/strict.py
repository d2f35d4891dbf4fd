"""Input that would be misread is an error: every token is checked before it is converted."""

from types import UnionType
from typing import Any, Union, get_args, get_origin

from cyclopts import App, ArgumentCollection


def only_whole_numbers(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Refuse a fraction where a whole number is wanted, on the command line and in a file; cyclopts would round it.

    Raises:
        ValueError: names the option and what was given.

    """
    for argument in arguments:
        if _takes_whole_numbers(argument.hint):
            for token in argument.tokens:
                if not _is_whole(token.value):
                    named = token.keyword or argument.name
                    if token.source != "cli":
                        named = f"{token.source}: {named.strip('[]')}"
                    raise ValueError(f"{named} takes a whole number, not {token.value}")


def _takes_whole_numbers(hint: Any) -> bool:
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return int in kinds and float not in kinds


def _is_whole(text: str) -> bool:
    try:
        return float(text).is_integer()
    except ValueError:
        return True  # not a number, or 0x10: cyclopts reports it
