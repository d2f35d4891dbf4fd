"""Gradients for pruning by a recorded forward and backward pass: a step of FORCE takes few launches on a GPU."""

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from skeletal.core.model.batches import evaluate, forward, to_device
from skeletal.core.model.distributed import ranks
from skeletal.core.model.gradients import Derivatives
from skeletal.core.model.precision import autocast, in_float32
from skeletal.core.model.preserve import device_of, differentiable, with_parameters
from skeletal.core.model.state.processor_draws import ProcessorDraws
from skeletal.core.model.state.random_state import beside_torch, set_beside_torch
from skeletal.core.model.tensors import Tensors
from skeletal.harness.store.statefile import in_short
from skeletal.harness.training import choose_step
from skeletal.harness.training.graph import FLOAT32_ROUNDING, WARM_UPS, MismatchError

RandomState = tuple[Tensor, Tensor | None, dict[str, Any]]
BFLOAT16_ROUNDING = 0.1  # of a gradient, relative; the same kernels, but sums in another order


@dataclass(frozen=True)
class _Pass:
    """A recording, and the memory it reads and writes."""

    replay: Callable[[], object]
    batch: tuple[Tensor, Tensor]
    state: Tensors
    leaves: Tensors
    loss: Tensor

    def run(self, batch: tuple[Tensor, Tensor], state: Tensors, leaves: Tensors) -> float:
        """Leave gradients in `leaves`, as copies that nobody writes to, and return the loss.

        What layers note of a batch, for the next one, goes back into `state`, unless the loss is not finite.
        """
        with torch.no_grad():
            for there, here in zip(self.batch, batch, strict=True):
                there.copy_(here, non_blocking=True)
            for name, there in (self.state | self.leaves).items():
                there.copy_(leaves[name] if name in leaves else state[name])
        self.replay()
        for name, leaf in self.leaves.items():
            leaves[name].grad = None if leaf.grad is None else _copy(leaf.grad)
        if math.isfinite(loss := self.loss.item()):
            for name, there in self.state.items():
                state[name].copy_(there)
        return loss


class CapturedDerivatives(Derivatives):
    """`Derivatives` whose gradients come from a recording, once it has been compared with an unrecorded pass.

    Second derivatives, batches that are not a pair of tensors, and several processes are as in `Derivatives`.
    """

    _first_order = False
    _given_up = False

    def _gradient(self, weights: Tensors, batches: Iterator[Any], *, everywhere: bool = False) -> tuple[Tensors, float]:
        self._first_order = True
        try:
            return super()._gradient(weights, batches, everywhere=everywhere)
        finally:
            self._first_order = False

    def _visit(
        self,
        batch: Any,
        share: float,
        state: Tensors,
        leaves: Tensors,
        backward: Callable[[Tensors, Tensor], None],
    ) -> float:
        device = device_of(self.model)
        recorder = choose_step.recorder_for(device)
        pair = isinstance(batch, tuple | list) and len(batch) == 2 and all(isinstance(x, Tensor) for x in batch)
        if not (self._first_order and pair and share == 1) or self._given_up or recorder is None or ranks() > 1:
            return super()._visit(batch, share, state, leaves, backward)
        passes: dict[Any, _Pass] = self.__dict__.setdefault("_passes", {})
        shapes = tuple((x.shape, x.dtype) for x in batch)
        if shapes in passes:
            loss = passes[shapes].run(to_device(batch, device, channels_last=self.channels_last), state, leaves)
            if math.isfinite(loss):
                return loss
        drawn = _random_state(device)
        fresh = {name: tensor.clone() for name, tensor in state.items()}  # the pass writes to it
        loss = super()._visit(batch, share, state, leaves, backward)  # which says what is wrong, if something is
        if shapes not in passes:
            after = _random_state(device)
            try:
                passes[shapes] = self._record(recorder, batch, fresh, leaves, loss, drawn)
            except Exception as error:  # nobody knows in advance what a stranger's network does
                self._given_up = True
                warnings.warn(f"scoring steps are taken kernel by kernel ({in_short(error)})", stacklevel=2)
            _set_random_state(device, after)
        return loss

    def _record(
        self,
        recorder: Any,
        batch: Any,
        state: Tensors,
        leaves: Tensors,
        loss: float,
        drawn: RandomState,
    ) -> _Pass:
        """Record the pass, and compare it with the gradients that lie in `leaves`."""
        device = device_of(self.model)
        images, labels = to_device(batch, device, channels_last=self.channels_last)
        static = {name: tensor.clone() for name, tensor in state.items()}
        # In the memory order of the images; weights in any other would be copied into it in every pass.
        ordered = to_device(
            {name: leaf.detach() for name, leaf in leaves.items()}, device, channels_last=self.channels_last
        )
        mine = {name: weight.clone().requires_grad_() for name, weight in ordered.items()}
        there = images.clone(), labels.clone()
        value = torch.zeros((), dtype=torch.float64, device=device)

        def once() -> None:
            for leaf in mine.values():
                leaf.grad = None
            with differentiable(), autocast("float32", device):
                with_parameters(self.model, static | mine, step)

        def step() -> None:
            with autocast(self.precision, device):
                outputs = forward(self.model, there)
            found = evaluate(self.loss, outputs if self.precision == "float32" else in_float32(outputs), there)
            found.backward()
            value.copy_(found.detach())

        draws = ProcessorDraws(self.model, device)
        for _ in range(WARM_UPS):
            once()
        draws.refuse()
        recorded = _Pass(recorder.record(once), there, static, mine, value)
        expected = {name: leaf.grad for name, leaf in leaves.items()}
        _set_random_state(device, drawn)
        again = recorded.run((images, labels), state, leaves)
        found = {name: leaf.grad for name, leaf in leaves.items()}
        for name, leaf in leaves.items():
            leaf.grad = expected[name]
        self._compare(loss, again, expected, found)
        return recorded

    def _compare(self, loss: float, again: float, expected: dict[str, Any], found: dict[str, Any]) -> None:
        limit = FLOAT32_ROUNDING if self.precision == "float32" else BFLOAT16_ROUNDING
        if [name for name in expected if (expected[name] is None) != (found[name] is None)]:
            raise MismatchError("a recorded pass reaches other weights than one that is not recorded")
        pairs = [(grad.double(), found[name].double()) for name, grad in expected.items() if grad is not None]
        apart = sum((theirs - ours).square().sum() for theirs, ours in pairs)
        length = sum(theirs.square().sum() for theirs, _ in pairs)
        difference = float(torch.as_tensor(apart).sqrt() / torch.as_tensor(length).sqrt().clamp(min=1e-300))
        if not (difference <= limit and abs(again - loss) <= limit * max(1.0, abs(loss))):
            raise MismatchError(
                f"a recorded gradient is off by {difference:.2g}, where rounding explains {limit:.2g}, and its loss is"
                f" {again:g}, not {loss:g}"
            )


def _copy(gradient: Tensor) -> Tensor:
    """In the order of the weights that scores are made of; the sparse gradient of an embedding has no order."""
    strided = gradient.layout == torch.strided
    return gradient.clone(memory_format=torch.contiguous_format if strided else torch.preserve_format)


def _random_state(device: torch.device) -> RandomState:
    on_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return torch.get_rng_state(), on_device, beside_torch()


def _set_random_state(device: torch.device, state: RandomState) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
    set_beside_torch(state[2])
