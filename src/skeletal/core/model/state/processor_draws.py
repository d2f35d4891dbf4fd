"""Random numbers that a recorded step would repeat: those that the processor draws, in place of the device."""

from typing import Any

import torch
from torch import nn

from skeletal.core.model.state.random_state import beside_torch, generator_state, is_generator
from skeletal.core.model.state.reach import reachable


class ProcessorDraws:
    """The states of all generators that a network on a device may draw from, but for the device's own.

    A branch such as `if torch.rand(1) < 0.1` needs nothing from a GPU: a recording succeeds, and takes the same branch
    ever after, which a comparison of two steps sees only by chance.
    """

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self._of_torch = device.type == "cuda"  # which draws for its layers from a generator of its own
        self._own = [found.value for found in reachable(network) if is_generator(found.value)]
        self._before = self._states()

    def refuse(self) -> None:
        """Refuse to record what has drawn any such number since.

        Raises:
            RuntimeError: it has.

        """
        after = self._states()
        if drawn := [whose for whose in after if after[whose] != self._before[whose]]:
            raise RuntimeError(
                f"the network draws random numbers from {drawn[0]} generator on the CPU, which a recording repeats"
            )

    def _states(self) -> dict[str, Any]:
        beside = beside_torch()
        states: dict[str, Any] = {"Python's": beside["python"], "numpy's": beside["numpy"]}
        if self._of_torch:
            states["torch's"] = generator_state(torch.default_generator)
        return states | {"its own": [generator_state(generator) for generator in self._own]}
