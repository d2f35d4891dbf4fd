"""The global random states of torch's CPU generator, Python and numpy, and those of single generators."""

import random
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn


class RandomState:
    """All three as they are now; two are equal if all their states are. numpy's counts if numpy is loaded.

    Args:
        only_torch: leave out Python's and numpy's, which take a fraction of a millisecond.

    """

    def __init__(self, *, only_torch: bool = False) -> None:
        self._torch, self._python = torch.get_rng_state(), None if only_torch else random.getstate()
        numpy = None if only_torch else sys.modules.get("numpy")
        self._numpy = numpy.random.get_state(legacy=False) if numpy else None  # of any kind of bit generator

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RandomState) or self._python != other._python:
            return False
        return torch.equal(self._torch, other._torch) and _plain(self._numpy) == _plain(other._numpy)

    __hash__ = None  # type: ignore[assignment]

    def restore(self) -> None:
        """Restore all three."""
        torch.set_rng_state(self._torch)
        if self._python is not None:
            random.setstate(self._python)
        if self._numpy is not None:
            sys.modules["numpy"].random.set_state(self._numpy)


def beside_torch() -> dict[str, Any]:
    """The states of Python's and numpy's generators, as plain values for a file that holds data and no code."""
    numpy = sys.modules.get("numpy")
    states: dict[str, Any] = {"python": random.getstate(), "numpy": None}
    if numpy:
        state = numpy.random.get_state(legacy=False)
        if state["bit_generator"] == "MT19937":  # numpy's own; `set_bit_generator` puts another in its place
            inner = state["state"]
            states["numpy"] = "MT19937", inner["key"].tolist(), inner["pos"], state["has_gauss"], state["gauss"]
    return states


def set_beside_torch(states: dict[str, Any]) -> None:
    """Restore what `beside_torch` gave; the values may be a stranger's.

    Raises:
        TypeError: they are no such states.

    """
    try:
        random.setstate(states["python"])
        if states["numpy"] is not None and (numpy := sys.modules.get("numpy")):
            kind, words, position, *rest = states["numpy"]
            if not 0 <= position <= len(words):  # which numpy does not check, and reads there
                raise ValueError(f"position {position} of {len(words)}")
            numpy.random.set_state((kind, words, position, *rest))
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        raise TypeError(f"a random generator's state is damaged: {error}") from error


def seed_all(seed: int, model: nn.Module | None = None) -> None:
    """Seed all three, and torch's generators on the devices of a model."""
    # Not torch.manual_seed, which seeds all other devices, too, also those whose state nobody restores.
    for generator in (torch.default_generator, *generators_elsewhere(model)):
        generator.manual_seed(seed)
    random.seed(seed)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(seed % 2**32)


def generators_elsewhere(model: nn.Module | None) -> list[torch.Generator]:
    """Those that torch itself keeps for a model's devices, but not the CPU's."""
    tensors = [] if model is None else [*model.parameters(), *model.buffers()]
    found = []
    for device in {tensor.device: None for tensor in tensors if tensor.device.type not in ("cpu", "meta")}:
        of_kind = getattr(torch, device.type, None)  # torch.cuda, torch.xpu, torch.mps
        if generators := getattr(of_kind, "default_generators", None):
            found.append(generators[device.index or 0])
        elif of_kind is torch.mps:
            found.append(torch.mps._get_default_mps_generator())
    return found


def is_generator(value: object) -> bool:
    """Whether a value is a generator of torch, Python or numpy, with a state that can be read."""
    if isinstance(value, (torch.Generator, random.Random)):
        return not isinstance(value, random.SystemRandom)
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(
        value, (numpy.random.Generator, numpy.random.RandomState, numpy.random.BitGenerator)
    )


def generator_state(generator: Any) -> str:
    """A generator's present state, to compare."""
    read, _ = _access(generator)
    return repr(_plain(read()))


def state_setter(generator: Any) -> Callable[[], None]:
    """A function that puts a generator back into its present state."""
    read, write = _access(generator)
    return partial(write, read())


def _access(generator: Any) -> tuple[Callable[[], Any], Callable[[Any], Any]]:
    if isinstance(generator, random.Random):
        return generator.getstate, generator.setstate
    if isinstance(generator, torch.Generator):
        return generator.get_state, generator.set_state
    if hasattr(generator, "get_state"):  # numpy's old one
        return partial(generator.get_state, legacy=False), generator.set_state
    source = getattr(generator, "bit_generator", generator)
    return partial(getattr, source, "state"), partial(setattr, source, "state")


def _plain(state: Any) -> Any:
    if isinstance(state, dict):
        return {name: _plain(value) for name, value in state.items()}
    return state.tolist() if hasattr(state, "tolist") else state
