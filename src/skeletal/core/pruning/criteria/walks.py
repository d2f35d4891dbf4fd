"""Random walks through a network, from its inputs to its outputs and back, along heavy weights. Without data.

A walk is an example of a batch. Each layer takes the one channel in which its input is not 0, chooses one of the
weights that lead on from there, and gives an output that is not 0 in that weight's channel alone; or, backwards, such a
gradient. What lies between layers (norms, activations, pooling, additions, branches) runs unchanged, so nothing needs
to know how layers are connected. Where paths fork, a walk takes all of them, and where they join, it continues from
one: so it is traced back, and only weights on the path that it followed to the end count.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from skeletal.core.model.batches import map_inputs, to_device
from skeletal.core.model.preserve import device_of, differentiable, set_mode, with_parameters
from skeletal.core.model.recompute import refuse_reentrant
from skeletal.core.model.tensors import Tensors
from skeletal.core.pruning.criteria.flow import positive_state
from skeletal.core.pruning.criteria.inputs import along_paths, check_dependent, tensor_from
from skeletal.core.pruning.criteria.layers import layers_replaced

WALKS = 128  # at a time
MOST_VISITS = 10  # to all weights together, per weight to keep; weights not found by then are ranked by size


def heavy_paths(model: nn.Module, weights: Tensors, batch: object, count: int, generator: torch.Generator) -> Tensors:
    """1 / n for a weight that the n-th walk was the first to take, until `count` weights have been taken.

    Walks begin at every input unit in turn, and at every output unit in turn, one here and one there, and continue
    along a weight of the current unit with a probability proportional to its absolute value (PHEW, Patil and Dovrolis
    2021). A unit is a channel, or a feature of a linear layer; one weight of a convolution's kernel is taken. Weights
    that no walk has found come last, by size.

    Args:
        model: its mode is set to eval; the caller restores it.
        weights: θ, by parameter name.
        batch: shapes of its inputs are used.
        count: how many weights are to be found.
        generator: on the CPU.

    Raises:
        ValueError: a weight belongs to neither a linear layer nor a convolution, inputs are not floating-point
            numbers, or no walk gets through.

    """
    set_mode(model, False)
    walk = _Walk(weights, generator)
    state = positive_state(model, weights)
    begun, visits = 0, 0
    with layers_replaced(model, weights, lambda layer, name: _taking(layer, walk, name), "phew"), along_paths("phew"):
        while walk.found < count and visits < MOST_VISITS * count:
            for direction in (_forwards, _backwards):
                walk.begin(begun)
                with_parameters(model, state, lambda go=direction: go(model, batch, walk))
                if not walk.visits:
                    raise ValueError("phew found no way through the network: not every layer hands a positive input on")
                visits += walk.visits
            begun += WALKS
    return walk.scores(2 * begun)


@dataclass(frozen=True)
class _Choice:
    """What walks have chosen at a layer: four vectors, one entry per walk that is there."""

    walk: Tensor
    into: Tensor
    """input unit"""
    out: Tensor
    """output unit"""
    taken: Tensor
    """the weight, by its position"""


class _Walk:
    """Where walks have been: for every weight the first walk that took it."""

    def __init__(self, weights: Tensors, generator: torch.Generator) -> None:
        self._sizes = {name: weight.detach().abs().double().cpu() for name, weight in weights.items()}
        self._first = {
            name: torch.full((size.numel(),), torch.inf, dtype=torch.float64, device="cpu")
            for name, size in self._sizes.items()
        }
        self._generator = generator
        self.mode = "onwards"
        """or "back", or "again": following walks that went back"""
        self.gone: dict[str, list[_Choice]] = {}
        """what was chosen on the way back, by layer, the last choice last"""
        self.number = self.visits = 0

    def begin(self, number: int) -> None:
        """Begin `WALKS` walks, of which the first has this number among those in its direction."""
        self.number, self.visits = number, 0

    @property
    def found(self) -> int:
        """How many weights have been taken."""
        return sum(int(first.isfinite().sum()) for first in self._first.values())

    def shape(self, name: str) -> torch.Size:
        """The shape of a weight."""
        return self._sizes[name].shape

    def choose(self, name: str, groups: int, there: Tensor) -> _Choice:
        """Choose a weight for each walk that is at a layer.

        Args:
            name: of the layer's weight.
            groups: of a convolution.
            there: (walks, units), not 0 where a walk is; one of several units is chosen.

        """
        here, size, onwards = there.ne(0).cpu(), self._sizes[name], self.mode == "onwards"
        present = here.any(1).nonzero().flatten()
        unit = (
            torch.multinomial(here[present].double(), 1, generator=self._generator).flatten()
            if len(present)
            else present
        )
        places = torch.arange(size.numel(), device="cpu").view(groups, len(size) // groups, size.shape[1], -1)
        places = places.transpose(1, 2) if onwards else places
        rows = places.reshape(places.shape[0] * places.shape[1], -1)[unit]  # weights that lead on from the unit
        sums = size.flatten()[rows].cumsum(1)
        drawn = torch.rand(len(unit), 1, dtype=torch.float64, generator=self._generator, device="cpu") * sums[:, -1:]
        chosen = torch.searchsorted(sums, drawn, right=True).clamp(max=rows.shape[1] - 1)
        able = sums[:, -1] > 0
        taken = rows.gather(1, chosen).flatten()[able]
        kernel = size[0, 0].numel()
        out, into = taken // (size.shape[1] * kernel), taken // kernel % size.shape[1]
        into = into + out // (len(size) // groups) * size.shape[1]
        return _Choice(present[able], into, out, taken)

    def take(self, name: str, choice: _Choice, where: Tensor) -> None:
        """Count the weights of the walks (a bool for each choice) that got through."""
        taken, number = choice.taken[where], self.number + choice.walk[where]
        ranks = 2 * number + (self.mode == "again")  # the two directions take turns, however few weights are kept
        self._first[name].scatter_reduce_(0, taken, ranks.double(), "amin")
        self.visits += len(taken)

    def scores(self, walks: int) -> Tensors:
        """1 / n for weights that the n-th walk was first to find; less, by size, for the rest."""
        largest = max(float(size.max()) for size in self._sizes.values()) or 1.0
        last = 0.5 / (1 + walks) / largest
        return {
            name: torch.where(first.isfinite(), 1 / (1 + first), size.flatten() * last).view_as(size)
            for (name, first), size in zip(self._first.items(), self._sizes.values(), strict=True)
        }


class _Step(torch.autograd.Function):
    """A layer, in which each walk takes one weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, walk: _Walk, name: str, groups: int, shape: torch.Size) -> Tensor:
        linear, length = len(walk.shape(name)) == 2, walk.shape(name)[0]
        ctx.about = walk, name, groups, x.shape, linear
        if walk.mode == "back":
            return x.new_ones(shape)  # positive, so that activations let the gradient through
        here = _units(x, linear)
        if walk.mode == "onwards":
            ctx.choice = choice = walk.choose(name, groups, here)
            return _spread(choice.walk, choice.out, length, x, shape, linear)
        choice = walk.gone[name].pop()
        through = here.cpu()[choice.walk, choice.into].ne(0)
        walk.take(name, choice, through)
        return _spread(choice.walk[through], choice.out[through], length, x, shape, linear)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        walk, name, groups, shape, linear = ctx.about
        here, length = _units(gradients[0], linear), walk.shape(name)[1] * groups
        if walk.mode == "back":
            choice = walk.choose(name, groups, here)
            walk.gone.setdefault(name, []).append(choice)
            through = torch.ones_like(choice.walk, dtype=torch.bool)
        else:
            choice = ctx.choice
            through = here.cpu()[choice.walk, choice.out].ne(0)
            walk.take(name, choice, through)
        back = _spread(choice.walk[through], choice.into[through], length, gradients[0], shape, linear)
        return back, None, None, None, None


def _units(x: Tensor, linear: bool) -> Tensor:
    """(walks, units), not 0 where a map or a feature is not 0 anywhere."""
    rest = tuple(range(1, x.dim() - 1) if linear else range(2, x.dim()))
    return x.abs().sum(rest) if rest else x


def _spread(walk: Tensor, unit: Tensor, length: int, like: Tensor, shape: torch.Size, linear: bool) -> Tensor:
    """1 everywhere in the maps where walks are, 0 elsewhere."""
    units = torch.zeros(shape[0], length, dtype=like.dtype, device="cpu")
    units[walk, unit] = 1
    rest = [1] * (len(shape) - 2)
    view = [shape[0], *rest, length] if linear else [shape[0], length, *rest]
    return units.to(like.device).view(view).expand(shape).clone()


def _taking(module: Any, walk: _Walk, name: str) -> Callable[[Tensor], Tensor]:
    def step(x: Tensor) -> Tensor:
        if isinstance(module, nn.Linear):
            return _Step.apply(x, walk, name, 1, (*x.shape[:-1], module.out_features))
        weight = torch.empty(walk.shape(name), dtype=x.dtype, device="meta")
        shape = module._conv_forward(torch.empty_like(x, device="meta"), weight, None).shape
        return _Step.apply(x, walk, name, module.groups, shape)

    return step


def _inputs(model: nn.Module, batch: object, value: Callable[[Tensor], Tensor]) -> tuple[Any, list[Tensor]]:
    """A batch of `WALKS` examples of the same kind, and its floating-point tensors, made by `value` from zeros."""
    floats = []

    def walks(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        floats.append(value(tensor.new_zeros(WALKS, *tensor.shape[1:], dtype=torch.float64)).requires_grad_())
        return floats[-1]

    inputs = map_inputs(walks, to_device(batch, device_of(model)))
    if not floats:
        raise ValueError("phew begins at the units of the input; this network takes no floating-point input")
    return inputs, floats


def _outputs(model: nn.Module, inputs: Any) -> Tensor:
    return tensor_from(model, inputs, "phew")


def _starts(walk: _Walk, values: Tensor) -> tuple[Tensor, ...]:
    """The element at which each walk begins.

    Indices along every dimension take turns, as do the elements: a unit may be a channel, along the first dimension of
    an example; a feature, along the last; or, if it is to be flattened, an element.
    """
    walks = torch.arange(WALKS, device=values.device)
    places, size = [walks], 1
    for length in values.shape[1:]:
        turn = (walk.number + walks) % (size * length)
        places.append((turn + turn // math.lcm(size, length)) % length)  # shifted before combinations come again
        size *= length
    return tuple(places)


def _forwards(model: nn.Module, batch: object, walk: _Walk) -> None:
    """From every input unit in turn."""

    def start(zeros: Tensor) -> Tensor:
        zeros[_starts(walk, zeros)] = 1
        return zeros

    walk.mode = "onwards"
    with differentiable():
        inputs, floats = _inputs(model, batch, start)
        _gradients(_outputs(model, inputs).sum(), floats)


def _backwards(model: nn.Module, batch: object, walk: _Walk) -> None:
    """From every output unit in turn."""
    walk.mode, walk.gone = "back", {}
    with differentiable():
        inputs, floats = _inputs(model, batch, torch.ones_like)
        outputs = _outputs(model, inputs)
        ends = _gradients(outputs[_starts(walk, outputs)].sum(), floats)
    walk.mode = "again"
    with torch.no_grad():
        _outputs(model, _inputs(model, batch, lambda zeros: ends.pop(0).abs())[0])


def _gradients(of: Tensor, floats: list[Tensor]) -> list[Tensor]:
    check_dependent(of, "phew")
    refuse_reentrant(of)
    found = torch.autograd.grad(of, floats, allow_unused=True)
    return [torch.zeros_like(f) if g is None else g for f, g in zip(floats, found, strict=True)]
