"""Path exclusion: how much each weight contributes to a bound on the trace of the neural tangent kernel."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from skeletal.core.model.batches import examples, forward, pieces, to_device
from skeletal.core.model.distributed import average_over_ranks, everyone
from skeletal.core.model.gradients import Derivatives
from skeletal.core.model.passes import Passes, passed
from skeletal.core.model.precision import autocast
from skeletal.core.model.preserve import device_of, differentiable, set_mode, state_of, with_parameters
from skeletal.core.model.recompute import refuse_reentrant
from skeletal.core.model.tensors import Tensors, not_finite
from skeletal.core.pruning.criteria.flow import counting_state, positive_state
from skeletal.core.pruning.criteria.inputs import along_paths, check_dependent, made_inputs, one_of_ones, tensor_from

ACTIVATIONS = {
    "relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "prelu", "rrelu", "rrelu_", "elu", "elu_", "celu", "selu",
    "gelu", "silu", "mish", "hardswish", "hardtanh", "hardtanh_", "tanh", "tanh_", "softsign",
}  # fmt: skip
"""names of torch's functions f with f(0) = 0: of a path, they let f(z) / z through"""
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
    depends.

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
        return _contributions(model, batches[0], leaves, squares, reached)


def _reached(derivatives: Derivatives, batches: list[Any], kept: Tensors, ones: Tensors) -> Tensor:
    """Σ_p a_p² x_p² for each output, the mean over examples, batches and processes, as a multiple of the largest."""
    model = derivatives.model
    own = state_of(model, without=kept)
    own |= {name: kept[name].to(weight.dtype) for name, weight in model.named_parameters() if name in kept}
    found: list[Tensor] = []
    seen = 0
    for batch in batches:
        seen += examples(batch)
        for piece, share in pieces(batch, derivatives.micro_batch):
            set_mode(model, derivatives.bn_mode == "train")
            inputs = to_device(piece, device_of(model))
            with torch.no_grad(), _Activations() as slopes:
                with_parameters(model, own, lambda given=inputs: forward(model, given))
            set_mode(model, False)
            inputs = made_inputs(model, piece, lambda x: x.double().square() * DOWN, "px")
            with torch.no_grad(), along_paths("px"), _Gates(slopes.found):
                outputs = with_parameters(model, dict(ones), lambda given=inputs: tensor_from(model, given, "px"))
            found.append(share * outputs.mean(0, keepdim=True))
        passed(Passes("forward", examples(batch)))  # to see what is open
        passed(Passes("forward", examples(batch), fresh=False))  # through what is
    numbers = everyone(seen)
    shared = {"": torch.stack(found).sum(0) / len(batches)}
    average_over_ranks(shared, seen * len(numbers) / sum(numbers))
    if not_finite(shared) is not None:
        raise ValueError("px: the number of paths to the outputs, times squared inputs, overflows")
    return shared[""] / shared[""].amax().clamp(min=torch.finfo(torch.float64).tiny)


def _contributions(model: nn.Module, batch: object, leaves: Tensors, squares: Tensors, reached: Tensor) -> Tensors:
    """∂R/∂θ̄² ⊙ θ̄² with one example of ones, every activation open."""
    set_mode(model, False)
    inputs = one_of_ones(model, batch, "px")
    with differentiable(), along_paths("px"), _Gates(None):
        outputs = with_parameters(model, squares | leaves, lambda: tensor_from(model, inputs, "px"))
        bound = (reached * outputs).sum()
        check_dependent(bound, "px")
        refuse_reentrant(bound)
        gradients = torch.autograd.grad(bound, list(leaves.values()), allow_unused=True)
    passed(Passes("gradient", 1, fresh=False))
    return {
        name: torch.zeros_like(leaf) if gradient is None else leaf.detach() * gradient
        for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True)
    }


class _Activations(TorchFunctionMode):
    """Notes f(z) / z of every activation that runs, 0 where z is 0."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not _is_activation(func, args):
            return func(*args, **kwargs)
        before = args[0].detach().clone()  # the activation may overwrite it
        after = func(*args, **kwargs)
        self.found.append(torch.where(before == 0, torch.zeros_like(before), after / before))
        return after


class _Gates(TorchFunctionMode):
    """In place of activations, multiplies by the squares of what was noted; without notes, lets everything through."""

    def __init__(self, slopes: list[Tensor] | None) -> None:
        super().__init__()
        self.slopes = None if slopes is None else iter(slopes)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not _is_activation(func, args):
            return func(*args, **kwargs)
        gate: Tensor | float = 1.0
        if self.slopes is not None:
            slope = next(self.slopes, None)
            if slope is None or slope.shape != args[0].shape:
                raise ValueError("px runs the network twice on a batch, and its activations were not the same ones")
            gate = slope.double().square()
        # In place where the activation is, as what follows may rely on its input having been overwritten; or not.
        in_place = func.__name__.endswith("_") or kwargs.get("inplace")
        return args[0].mul_(gate) if in_place else args[0] * gate


def _is_activation(func: Any, args: Any) -> bool:
    return getattr(func, "__name__", "") in ACTIVATIONS and bool(args) and isinstance(args[0], Tensor)
