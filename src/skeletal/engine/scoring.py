"""Derivatives while pruning, at the cost of what is left: dense at first, then on a compiled skeleton that shrinks."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from skeletal.compaction.compact import Compact, compact
from skeletal.compaction.slices import cut
from skeletal.core.diagnosis.probing import shorten
from skeletal.core.masks.mask import Mask
from skeletal.core.model.batches import evaluate, forward, pieces, to_device
from skeletal.core.model.distributed import everyone
from skeletal.core.model.gradients import Derivatives
from skeletal.core.model.precision import autocast
from skeletal.core.model.preserve import (
    device_of,
    differentiable,
    preserve_random_state,
    set_mode,
    state_of,
    with_parameters,
)
from skeletal.core.model.tensors import Tensors
from skeletal.engine.codegen import amx
from skeletal.engine.codegen.packed_bf16 import COMPUTES
from skeletal.engine.compiled import Compiled
from skeletal.engine.host.availability import available

BREAK_EVEN = {"float32": 0.15, "bfloat16": 0.05}
"""By precision: density below which gradients are taken on a skeleton, near where a step of VGG-19 and ResNet-50 costs
the same both ways (two threads, batch 128; docs/cost.md). Not measured at run time, as masks must not depend on a
machine's load. With a matrix unit (see `amx`) a step in bfloat16 on a skeleton is faster at any density."""
_FEW = 2
"""examples of a batch, for what does not depend on their number"""
REPLAN = 0.5
"""Share of a plan's weights that is left when the next is made. Planning costs one or two steps (docs/cost.md), and an
exponential schedule halves its weights every 9 to 30 steps."""


def break_even(precision: str) -> float:
    """`BREAK_EVEN` on this machine."""
    return 1.0 if precision == "bfloat16" and amx.available() else BREAK_EVEN[precision]


@dataclass(frozen=True)
class _Plan:
    """A compiled skeleton, and where its parameters lie in the weights that they come from."""

    derivatives: Derivatives
    """of the skeleton; it draws from the same batches"""
    places: dict[str, tuple[Tensor | slice, tuple[int, ...]]]
    """by name: where in the flat weight each entry of the skeleton's parameter lies, and that parameter's shape"""
    count: int
    """weights kept when it was made"""


class SkeletonDerivatives(Derivatives):
    """Gradients of kept weights, at a cost that falls with their number; for nested methods.

    Above a density of `break_even`, and where a skeleton is of no use (see `why_dense`), all is as in `Derivatives`.
    Below it, gradients are taken on a skeleton, recompiled each time only `REPLAN` of the weights that it was made for
    are left; those pruned in between are zeros among its values. What runs which way depends on masks and counts alone,
    never on measured times, so that the same call gives the same numbers.

    Kept weights get the dense network's gradient, up to rounding; pruned ones get 0, unlike there. In bfloat16 the
    skeleton keeps its maps in that type and adds up in float32. Active dropout draws other numbers, because its tensors
    have other shapes.
    """

    name = "sparse"
    everywhere = False
    why_dense: str | None = None
    """why no skeleton could be made, once one was due"""
    plans: int = 0
    """skeletons made so far"""

    _plan: _Plan | None = None

    def gradient(self, weights: Tensors, mask: Tensors | None = None) -> tuple[Tensors, float]:
        """The mean gradient with respect to the kept weights, 0 at the others, and the mean loss; see `Derivatives`.

        Each mask has to lie within the one before.
        """
        plan = None if mask is None else self._fitting(weights, mask)
        if plan is None or mask is None:
            return super().gradient(weights, mask)
        places = plan.places.items()
        found, loss = plan.derivatives.gradient(
            {name: weights[name].flatten()[at].view(shape) for name, (at, shape) in places}
        )
        gradient = {
            name: torch.zeros(weight.numel(), dtype=weight.dtype, device="cpu") for name, weight in weights.items()
        }
        for name, (at, _) in places:
            gradient[name][at] = found[name].flatten() * mask[name].flatten()[at]
        return {name: flat.view(weights[name].shape) for name, flat in gradient.items()}, loss

    def _fitting(self, weights: Tensors, mask: Tensors) -> _Plan | None:
        """The skeleton for a mask; None where there is none, or where it does not fit these weights."""
        if self.why_dense is not None:
            return None
        count = sum(int(keep.count_nonzero()) for keep in mask.values())
        if count > break_even(self.precision) * sum(keep.numel() for keep in mask.values()):
            return None
        if any((weight.ne(0) & ~mask[name]).any() for name, weight in weights.items()):
            return None  # a score of the caller's own asks for gradients elsewhere
        if self._plan is None or count <= REPLAN * self._plan.count:
            self._plan = None  # free its memory before making the next one
            made, why = self._make(mask, count)
            failures = [reason for reason in everyone(why) if reason]  # all ranks go the same way
            self._plan, self.why_dense = (None, failures[0]) if failures else (made, None)
            self.plans += not failures
        return self._plan

    def _make(self, mask: Tensors, count: int) -> tuple[_Plan | None, str]:
        """A skeleton, or why there is none."""
        if why := _unsuited(self.model, mask) or available(self.precision).reason:
            return None, why
        with preserve_random_state(self.model), differentiable():
            if self.plans == 0 and self._loss_reads(mask):
                return None, "the loss reads the network's weights"
            example, compacted = self._compacted(mask)
            if compacted.report.whole is not None:
                return None, compacted.report.whole
            if not compacted.mask.keys() <= mask.keys():
                return None, f"{', '.join(compacted.mask.keys() - mask.keys())} has several names"
            compiled = Compiled(compacted, Mask(mask), example)
            if not compiled.sparse_layers():
                return None, "no layer of it runs on sparse kernels"
            compiled.use("sparse")
        shared = self.batches, self.count, self.loss, self.bn_mode, self.average
        inner = Derivatives(compiled.network, *shared, precision=self.precision, micro_batch=self.micro_batch)
        return _Plan(inner, _places(compiled, compacted), count), ""

    def _loss_reads(self, names: Iterable[str]) -> bool:
        """Whether the loss itself reads parameters or buffers, as a penalty on weights does.

        It would find the model's own values there, not those asked about. The loss is evaluated once more for this.
        """
        if self.loss is None:
            return False
        set_mode(self.model, self.bn_mode == "train")
        state, device = state_of(self.model), device_of(self.model)
        for name in names:
            state[name].requires_grad_()  # a loss may take derivatives of the outputs
        piece, _ = next(pieces(self.batches.peek(), self.micro_batch))
        batch, watch = to_device(piece, device), _Watch(state)

        def run() -> None:
            outputs = forward(self.model, batch)
            with watch:
                evaluate(self.loss, outputs, batch)

        with autocast("float32", device):
            with_parameters(self.model, state, run)
        return watch.found

    def _compacted(self, mask: Tensors) -> tuple[Any, Compact]:
        """The network without dead channels, and the batch used to find them: a few examples do for most networks."""
        batch = self.batches.peek()
        few = shorten(batch, _FEW)
        try:
            return few, compact(self.model, mask, few)
        except ValueError:  # it runs on whole batches only, or not at all
            return batch, compact(self.model, mask, batch)


class _Watch(TorchDispatchMode):
    """Finds out whether operations read certain tensors, or views of them."""

    def __init__(self, tensors: Tensors) -> None:
        super().__init__()
        self._memory = {_memory(tensor) for tensor in tensors.values() if tensor.numel()}
        self.found = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = tree_leaves((args, kwargs))
        self.found |= any(isinstance(value, Tensor) and _memory(value) in self._memory for value in given)
        return func(*args, **(kwargs or {}))


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided else id(tensor)


def _unsuited(model: nn.Module, names: Iterable[str]) -> str:
    """Why the kernels cannot stand in for a model's weights, if they cannot."""
    parameters = dict(model.named_parameters())
    for name in names:
        weight = parameters[name]
        if weight.device.type != "cpu" or weight.dtype not in COMPUTES:
            return f"{name} is {weight.dtype} on {weight.device}; the kernels run float32 and float64 on the CPU"
        if not weight.requires_grad:
            return f"{name} is frozen, so that a channel may count as fixed where a gradient is asked for"
    return ""


def _places(compiled: Compiled, compacted: Compact) -> dict[str, tuple[Tensor | slice, tuple[int, ...]]]:
    sparse = {f"{name}.weight": layer.positions for name, layer in compiled.sparse_layers().items()}
    places = {}
    for name, keep in compacted.original_mask.items():
        if name in compacted.mask:  # else no operation uses it
            positions = cut(torch.arange(keep.numel(), device="cpu").view(keep.shape), compacted.slices[name])
            shape = tuple(positions.shape)
            at = positions.reshape(-1)
            if name in sparse:
                at, shape = at[sparse[name]], tuple(sparse[name].shape)
            places[name] = (slice(None) if len(at) == keep.numel() else at), shape
    return places
