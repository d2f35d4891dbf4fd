"""Passes through a network, told where they are made to whoever keeps count; to nobody, if nobody does."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

Kind = Literal["forward", "gradient", "hessian"]
"""forward: forward alone; gradient: forward and backward; hessian: forward, backward, and backward through both, as a
product of the Hessian with a vector takes"""


@dataclass(frozen=True)
class Passes:
    """What some examples went through, on this rank."""

    kind: Kind
    examples: int
    fresh: bool = True
    """whether they are examples of the data that have not been through an earlier pass for the same purpose"""
    everywhere: bool = False
    """whether the result is needed at pruned weights, too"""


Listener = Callable[[Passes], None]
_listener: ContextVar[Listener | None] = ContextVar("passes", default=None)


def passed(passes: Passes) -> None:
    """Tell of passes that have been made."""
    listener = _listener.get()
    if listener is not None:
        listener(passes)


@contextmanager
def listening(listener: Listener) -> Generator[None]:
    """Have all passes that are made inside the `with` block told to a function."""
    before = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(before)
