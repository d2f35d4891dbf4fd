"""Path exclusion: how much each weight contributes to a bound on the trace of the neural tangent kernel."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from skeletal.core.model.batches import examples, forward, map_inputs, pieces, to_device
from skeletal.core.model.distributed import average_over_ranks, everyone
from skeletal.core.model.gradients import Derivatives
from skeletal.core.model.passes import Passes, passed
from skeletal.core.model.precision import autocast
from skeletal.core.model.preserve import device_of, differentiable, set_mode, state_of, with_parameters
from skeletal.core.model.recompute import refuse_reentrant
from skeletal.core.model.tensors import Tensors
from skeletal.core.pruning.criteria.flow import counting_state, positive_state
from skeletal.core.pruning.criteria.inputs import along_paths, check_dependent, made_inputs, one_of_ones, tensor_from

ACTIVATIONS = {
    "relu", "relu6", "leaky_relu", "prelu", "rrelu", "elu", "celu", "selu", "gelu", "silu", "mish", "hardswish", "tanh",
    "softsign", "softshrink", "hardshrink", "tanhshrink",
}  # fmt: skip
"""names of torch's functions f with f(0) = 0, without underscores: of a path, they let f(z) / z through"""
BOUNDED = {"clamp", "clamp_max", "clamp_min", "clip", "hardtanh", "threshold"}
"""names of functions whose other arguments decide whether f(0) = 0"""
DOWN = 2.0**-500
"""scale of the inputs: of the double's range, most is needed above for the number of paths"""


def path_exclusion(derivatives: Derivatives, kept: Tensors, mask: Tensors) -> Tensors:
    """∂R/∂θ̄² ⊙ θ̄², R = Σ_n Σ_k (Σ_p a_p(x_n)² x_p²) (Σ_p Π θ̄²): both sums over all paths p to output k.

    a_p(x) is the product of what the activations along a path let through (of ReLUs: 1 where all are open) in the
    network at θ̄. The first factor is the squared norm of output k's derivatives by the values of paths; the second has
    that of paths' values by the weights as its gradient. The product of the two norms bounds the trace of the tangent
    kernel (PX, Iurada et al. 2024, "Finding Lottery Tickets in Vision Models via Data-driven Spectral Foresight
    Pruning").

    Paths run through weights that are not to be pruned, too. Norms are the identity except for their scale, biases
    are 0, max pooling passes the largest of what arrives. In doubles, and up to a constant factor, on which no ranking
    depends. Examples of another size have other paths: R is then the sum of such products, one for each size.

    Args:
        derivatives: for its model, the mode of that, and its next batches. Each batch counts the same, and each example
            of a batch; over several processes as for gradients.
        kept: θ̄, pruned weights zero.
        mask: c_t, bool.

    Raises:
        ValueError: no input is a floating-point number, the model returns no tensor or runs other activations when it
            runs again, or there are too many paths for doubles.

    """
    model, batches = derivatives.model, derivatives.batches.hold(derivatives.count)
    names = {name for name, _ in model.named_parameters()}
    positive = positive_state(model, kept)
    leaves = {name: value.detach().double().square().requires_grad_() for name, value in kept.items()}
    squares = {name: value.square() if name in names else value for name, value in positive.items()}
    ones = counting_state(model, kept) | {name: keep.double() for name, keep in mask.items()}
    with autocast("float32", device_of(model)):
        reached = _reached(derivatives, batches, kept, ones)
        seen = sum(map(examples, batches))
        numbers, largest = zip(*everyone((seen, max(float(sums.amax()) for _, sums in reached))), strict=True)
        scale = max(*largest, torch.finfo(torch.float64).tiny)
        scores = _contributions(model, [(piece, sums / scale) for piece, sums in reached], leaves, squares)
    average_over_ranks(scores, seen * len(numbers) / sum(numbers))  # not the sums: ranks may hold other sizes
    return scores


def _reached(derivatives: Derivatives, batches: list[Any], kept: Tensors, ones: Tensors) -> list[tuple[Any, Tensor]]:
    """Σ_p a_p² x_p² for each output, summed over the means of batches, and divided by how many batches there are.

    One entry for each size of examples, with a batch of this size.
    """
    model = derivatives.model
    own = state_of(model, without=kept)
    own |= {name: kept[name].to(weight.dtype) for name, weight in model.named_parameters() if name in kept}
    found: dict[Any, list[Tensor]] = defaultdict(list)
    first: dict[Any, Any] = {}
    for batch in batches:
        for piece, share in pieces(batch, derivatives.micro_batch):
            set_mode(model, derivatives.bn_mode == "train")
            inputs = to_device(piece, device_of(model))
            with torch.no_grad(), _Activations() as slopes:
                with_parameters(model, own, lambda given=inputs: forward(model, given))
            set_mode(model, False)
            inputs = made_inputs(model, piece, lambda x: x.double().square() * DOWN, "px")
            with torch.no_grad(), along_paths("px"), _Gates(slopes.found):
                outputs = with_parameters(model, dict(ones), lambda given=inputs: tensor_from(model, given, "px"))
            size = *_sizes(piece), outputs.shape[1:]
            first.setdefault(size, piece)
            found[size].append(share * outputs.mean(0, keepdim=True))
        passed(Passes("forward", examples(batch)))  # to see what is open
        passed(Passes("forward", examples(batch), fresh=False))  # through what is
    sums = {size: torch.stack(parts).sum(0) / len(batches) for size, parts in found.items()}
    if not all(torch.isfinite(total).all() for total in sums.values()):
        raise ValueError("px: the number of paths to the outputs, times squared inputs, overflows")
    return [(first[size], total) for size, total in sums.items()]


def _sizes(batch: Any) -> list[torch.Size]:
    """Of one example, for each input."""
    found: list[torch.Size] = []
    map_inputs(lambda x: found.append(x.shape[1:]) or x, batch)
    return found


def _contributions(model: nn.Module, reached: list[tuple[Any, Tensor]], leaves: Tensors, squares: Tensors) -> Tensors:
    """∂R/∂θ̄² ⊙ θ̄² with one example of ones for each size, every activation open."""
    set_mode(model, False)
    inputs = [one_of_ones(model, batch, "px") for batch, _ in reached]
    with differentiable(), along_paths("px"), _Gates(None):
        bound = torch.zeros((), dtype=torch.float64, device=device_of(model))
        for given, (_, sums) in zip(inputs, reached, strict=True):
            outputs = with_parameters(model, squares | leaves, lambda given=given: tensor_from(model, given, "px"))
            bound = bound + (sums * outputs).sum()
        check_dependent(bound, "px")
        refuse_reentrant(bound)
        gradients = torch.autograd.grad(bound, list(leaves.values()), allow_unused=True)
    passed(Passes("gradient", len(reached), fresh=False))
    return {
        name: torch.zeros_like(leaf) if gradient is None else leaf.detach() * gradient
        for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True)
    }


class _AtActivations(TorchFunctionMode):
    """Hands what an activation is applied to, and the activation, to `at`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        z = args[0] if args else kwargs.get("input")
        name = getattr(func, "__name__", "")
        rest = args[1:], {key: value for key, value in kwargs.items() if key != "input"}
        if not isinstance(z, Tensor) or not z.is_floating_point() or not _keeps_zero(func, name.strip("_"), *rest):
            return func(*args, **kwargs)
        in_place = name.endswith("_") or kwargs.get("inplace", False)
        return self.at(z, lambda z: func(z, *rest[0], **rest[1]), in_place)

    def at(self, z: Tensor, activation: Callable[[Tensor], Tensor], in_place: bool) -> Tensor:
        """What is to come out."""
        raise NotImplementedError


class _Activations(_AtActivations):
    """Notes f(z) / z of every activation that runs, 0 where z is 0."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Tensor] = []

    def at(self, z: Tensor, activation: Callable[[Tensor], Tensor], in_place: bool) -> Tensor:
        before = z.detach().clone()  # the activation may overwrite it
        after = activation(z)
        self.found.append(torch.where(before == 0, torch.zeros_like(before), after / before))
        return after


class _Gates(_AtActivations):
    """In place of activations, multiplies by the squares of what was noted; without notes, lets everything through."""

    def __init__(self, slopes: list[Tensor] | None) -> None:
        super().__init__()
        self.slopes = None if slopes is None else iter(slopes)

    def at(self, z: Tensor, activation: Callable[[Tensor], Tensor], in_place: bool) -> Tensor:
        gate: Tensor | float = 1.0
        if self.slopes is not None:
            slope = next(self.slopes, None)
            if slope is None or slope.shape != z.shape:
                raise ValueError("px runs the network twice on a batch, and its activations were not the same ones")
            gate = slope.double().square()
        # In place where the activation is, as what follows may rely on its input having been overwritten; or not.
        return z.mul_(gate) if in_place else z * gate


def _keeps_zero(func: Any, name: str, args: Any, kwargs: Any) -> bool:
    """Whether a function is an activation f with f(0) = 0, so that paths run through it, also when they are open."""
    if name not in BOUNDED:
        return name in ACTIVATIONS
    if any(isinstance(value, Tensor) for value in (*args, *kwargs.values())):
        return False  # a bound that may be 0 in one run of the network, and not in the next
    return not func(torch.zeros((), device="cpu"), *args, **kwargs)
