"""Which kept weights lie on a path from the input to the output, which read only a constant, which do nothing."""

from collections.abc import Mapping
from contextlib import nullcontext, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from skeletal.core.diagnosis.constants import BeyondConstants, ReadAtZero, without_inputs
from skeletal.core.diagnosis.pooling import AveragePools
from skeletal.core.diagnosis.probing import ATTEMPTS, differ, first_that_runs, many_of, outputs_of, shorten
from skeletal.core.diagnosis.structure import (
    MORE,
    Draw,
    random_positive,
    random_signed,
    stand_ins,
    stored_values,
    with_values,
)
from skeletal.core.model.batches import forward, map_inputs, to_device
from skeletal.core.model.preserve import device_of, preserve_attributes, with_parameters
from skeletal.core.model.state.random_state import seed_all
from skeletal.core.model.tensors import Tensors

_SCALES = (1.0, 2.0**-20)  # of inputs and biases: the small one avoids saturation, as in ReLU6 after many skips
_DRAWS = 16
_CHANGES = 3  # of weights that should change nothing, as an argmax does not notice every change


def effective_weights(model: nn.Module, mask: Mapping[str, Tensor], batch: Any) -> tuple[Tensors, Tensors]:
    """Sort the kept weights by what they can do, judged by the mask alone.

    * effective: on a path of kept weights from the input to the output;
    * on a constant: a path leads on to the output, but none leads here from the input; the weight reads only what
      biases further up make (its channel's own, or its norm layer's). It is trained, and
      changes the output, by the same amount for every input;
    * the others are dead: they cannot reach the output, or read nothing but zeros. No gradient ever reaches them,
      and their values never change the output.

    As in synaptic flow, a weight w > 0 has its share w ∂R/∂w in R, a positive random projection of the outputs.
    In eval mode, on positive inputs, with positive random weights, norm scales 1, batch-norm statistics 0 and
    1 and without biases, no two paths cancel: the share is 0 exactly where there is no path. With positive biases it
    is 0 only at dead weights. To avoid underflow, everything is in double precision, the share's two factors are
    examined separately, and the weights that enter a unit sum to 1: activations, being averages of live inputs, then
    do not shrink with depth, and gradients keep their sum. Max pools average, as they would let a gradient
    reach winners alone. ReLU6 passes only small values, so draws are repeated on two scales until one finds nothing
    new.

    Some networks need negative values (CReLU, min(x, 0), centred weights), large ones, or many examples (experts to
    which few are sent). So before anything is called dead, draws of either sign on more examples are added: a gradient
    at any of them proves that there is a path.

    Layers that mix signs (LayerNorm, softmax, centred by their nature) may cancel for one draw, but with probability
    0 for a random one; there, a weight is effective if its generic gradient is not 0, and a path closed only by
    exact cancellation (softmax over equal tokens) may appear open due to rounding. A kernel position that meets only
    padding at this image size (the corners of a kernel on a 1x1 map) is on no path. Parameters that are added
    but not called a bias (class tokens, position embeddings) count as inputs; so do token embeddings.

    Args:
        model: in eval mode; the caller restores it (see `preserve_model`).
        mask: bool, by parameter name, fitting the model.
        batch: any batch of the kind the model takes; only its shapes and integers are used.

    Returns:
        Two masks of the same names and shapes: effective, and on a constant.

    Raises:
        ValueError: the model does not run on made-up inputs of these shapes.

    """
    mask = {name: keep.to(device_of(model)) for name, keep in mask.items()}

    def sort(examples: int | None, dtype: torch.dtype | None) -> tuple[Tensors, Tensors]:
        few = shorten(to_device(batch, device_of(model)), examples)
        constants = _reads_constants(model, mask, few, dtype)
        effective = _reached(model, mask, few, dtype, biased=False, constants=constants)
        effective = _with_more(effective, model, mask, batch, biased=False, constants=constants)
        left = {name: keep & ~effective[name] for name, keep in mask.items()}
        if not any(keep.any() for keep in left.values()):
            return effective, left
        trained = _or(effective, _reached(model, mask, few, dtype, biased=True))
        trained = _with_more(trained, model, mask, batch, biased=True)
        return effective, {name: keep & trained[name] for name, keep in left.items()}

    return first_that_runs(model, [partial(sort, *how) for how in ATTEMPTS])


def reached_in_training(model: nn.Module, mask: Mapping[str, Tensor], batch: Any) -> Tensors | None:
    """The kept weights on a path to what the model returns in train mode: heads and losses may exist there only.

    torch's own layers stay in eval mode, so that no batch statistics mix with the paths.

    Args:
        model: in any mode; left in it.
        mask: bool, by parameter name, fitting the model.
        batch: any batch of the kind the model takes.

    Returns:
        A mask of the same names and shapes; None if the model does not run in train mode on this batch, such as a
        detection model without targets.

    """
    mask = {name: keep.to(device_of(model)) for name, keep in mask.items()}
    modes = [(module, module.training) for module in model.modules()]

    def reach(examples: int | None, dtype: torch.dtype | None) -> Tensors:
        few = shorten(to_device(batch, device_of(model)), examples)
        constants = _reads_constants(model, mask, few, dtype)
        reached = _reached(model, mask, few, dtype, biased=False, constants=constants, losses=True)
        return _with_more(reached, model, mask, batch, biased=False, constants=constants, losses=True)

    try:
        for module, _ in modes:
            module.training = not type(module).__module__.startswith("torch.nn.modules.")
        return first_that_runs(model, [partial(reach, *how) for how in ATTEMPTS])
    except ValueError:
        return None
    finally:
        for module, mode in modes:
            module.training = mode


def changing_without_gradient(model: nn.Module, mask: Mapping[str, Tensor], dead: Tensors, batch: Any) -> list[str]:
    """The layers whose weights change the output although no gradient reaches them: behind rounding, or an argmax.

    Args:
        model: in eval mode; the caller restores it (see `preserve_model`).
        mask: bool, by parameter name, fitting the model.
        dead: the kept weights that no gradient reaches, for some or all of these names.
        batch: any batch of the kind the model takes.

    """
    mask = {name: keep.to(device_of(model)) for name, keep in mask.items()}
    dead = {name: weights.to(device_of(model)) for name, weights in dead.items() if weights.any()}

    def attempt(examples: int | None, dtype: torch.dtype | None, draw: Draw) -> list[str]:
        generator = torch.Generator().manual_seed(0)
        state = stand_ins(model, mask, dtype, 1.0, generator, draw)
        few = shorten(to_device(batch, device_of(model)), examples)
        inputs = map_inputs(lambda t: draw(t, dtype, generator) if t.is_floating_point() else t, few)

        def outputs(names: list[str]) -> list[Tensor]:
            drawn = {
                name: state[name] * (1 + dead[name] * random_positive(state[name], None, generator)) for name in names
            }
            seed_all(0, model)  # a model that is random even in eval mode has to be random in the same way
            with preserve_attributes(model):  # gradients are on, for a network that takes derivatives itself
                given = map_inputs(torch.clone, inputs)
                found = outputs_of(with_parameters(model, state | drawn, lambda: forward(model, given)))
                return [output.detach() for output in found]

        before = outputs([])

        def change(names: list[str]) -> bool:
            return any(any(map(differ, before, outputs(names))) for _ in range(_CHANGES))

        return [name for name in dead if change([name])] if dead and change(list(dead)) else []

    def changing(draw: Draw) -> list[str]:
        return first_that_runs(model, [partial(attempt, *how, draw) for how in ATTEMPTS])

    found = changing(random_positive)
    dead = {name: weights for name, weights in dead.items() if name not in found}
    with suppress(ValueError):  # negative inputs may be no inputs
        found += changing(random_signed)
    return found


def channels(owner: nn.Module | None, effective: Tensor) -> tuple[tuple[int, int], tuple[int, int]]:
    """Of a layer's inputs and of its outputs: how many channels effective weights touch, and how many they do not.

    For a vector, both are its entries.
    """
    if effective.dim() < 2:
        live = int(effective.sum())
        return (live, effective.numel() - live), (live, effective.numel() - live)
    groups: Any = getattr(owner, "groups", 1)
    pairs = effective.flatten(2).any(2) if effective.dim() > 2 else effective
    pairs = pairs.unflatten(0, (groups, -1))  # (groups, outputs / groups, inputs / groups)
    inputs, outputs = ((int(touched.sum()), int((~touched).sum())) for touched in (pairs.any(1), pairs.any(2)))
    swapped = getattr(owner, "transposed", False) or type(owner).__name__ == "Conv1D"  # (inputs, outputs, ...)
    return (outputs, inputs) if swapped else (inputs, outputs)


def _reached(
    model: nn.Module,
    mask: Tensors,
    batch: Any,
    dtype: torch.dtype | None,
    *,
    biased: bool,
    constants: bool = False,
    losses: bool = False,
) -> Tensors:
    """Where, in any of several random draws, the gradient of a random projection of the outputs is not 0."""
    once = partial(_reached_once, model, mask, batch, biased=biased, constants=constants, losses=losses)
    generator = torch.Generator().manual_seed(0)
    reached = {name: torch.zeros_like(keep) for name, keep in mask.items()}
    for number in range(_DRAWS):
        scale, before = _SCALES[number % len(_SCALES)], reached
        reached = _or(reached, once(generator, dtype, scale))
        if _same(reached, mask) or (_same(reached, before) and number + 1 >= len(_SCALES)):
            break
    return reached


def _with_more(
    reached: Tensors,
    model: nn.Module,
    mask: Tensors,
    batch: Any,
    *,
    biased: bool,
    constants: bool = False,
    losses: bool = False,
) -> Tensors:
    """What is reached, and what draws of either sign on more examples reach, until a round of them finds no more."""
    generator, quiet = torch.Generator().manual_seed(1), 0
    many = many_of(to_device(batch, device_of(model)))
    once = partial(_reached_once, model, mask, many, biased=biased, constants=constants, losses=losses)
    for number in range(_DRAWS):
        if quiet == len(MORE) or _same(reached, mask):
            break
        scale, draw = MORE[number % len(MORE)]

        def attempt(dtype: torch.dtype | None, scale: float = scale, draw: Draw = draw) -> Tensors:
            return once(generator, dtype, scale, draw)

        before = reached
        with suppress(ValueError):  # negative inputs may be no inputs
            reached = _or(reached, first_that_runs(model, [partial(attempt, torch.float64), partial(attempt, None)]))
        quiet = quiet + 1 if _same(reached, before) else 0
    return reached


def _reached_once(
    model: nn.Module,
    mask: Tensors,
    batch: Any,
    generator: torch.Generator,
    dtype: torch.dtype | None,
    scale: float,
    draw: Draw = random_positive,
    *,
    biased: bool,
    constants: bool,
    losses: bool,
) -> Tensors:
    state = stand_ins(model, mask, dtype, scale if biased else 0.0, generator, draw)
    leaves = {name: state[name].requires_grad_() for name in mask}

    def drawn(tensor: Tensor) -> Tensor:
        return draw(tensor, dtype, generator) * scale if tensor.is_floating_point() else tensor.clone()

    inputs = map_inputs(drawn, batch)
    layers = BeyondConstants(_read_at_zero(model, state, inputs)) if constants else nullcontext()
    with AveragePools(), layers:
        returned = with_parameters(model, state, lambda: forward(model, inputs))
    outputs = list(outputs_of(returned, losses=losses))
    if any(not torch.isfinite(output).all() for output in outputs):
        raise OverflowError("the probing signal overflows")
    reached = {name: torch.zeros_like(keep) for name, keep in mask.items()}
    projection = sum((output * random_positive(output, None, generator)).sum() for output in outputs)
    if not isinstance(projection, Tensor) or not projection.requires_grad:
        return reached
    gradients = torch.autograd.grad(projection, list(leaves.values()), allow_unused=True)
    for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True):
        if gradient is not None:
            dense = gradient if gradient.layout == torch.strided else gradient.to_dense()  # of sparse embeddings
            reached[name] = leaf.detach().ne(0) & dense.ne(0)
    return reached


def _reads_constants(model: nn.Module, mask: Tensors, batch: Any, dtype: torch.dtype | None) -> bool:
    """Whether layers read something although nothing enters the network, as behind a sigmoid; one draw tells for all.

    Of a network that does not run on zeros it is not known: there, whatever has a gradient counts as on a path.
    """
    state = stand_ins(model, mask, dtype, 0.0, torch.Generator().manual_seed(0))
    inputs = map_inputs(lambda t: t.to(dtype or t.dtype) if t.is_floating_point() else t, batch)
    try:
        return any(read.any() for read in _read_at_zero(model, state, inputs))
    except Exception:  # a stranger's model may raise anything
        return False


def _read_at_zero(model: nn.Module, state: Tensors, inputs: Any) -> list[Tensor]:
    nothing = map_inputs(
        lambda t: with_values(t, torch.zeros_like(stored_values(t))) if t.is_floating_point() else t, inputs
    )
    with AveragePools(), (at_zero := ReadAtZero()):  # with gradients, for a network that takes derivatives itself
        with_parameters(model, without_inputs(model, state), lambda: forward(model, nothing))
    return at_zero.read


def _or(one: Tensors, two: Tensors) -> Tensors:
    return {name: mask | two[name] for name, mask in one.items()}


def _same(one: Tensors, two: Tensors) -> bool:
    return all(torch.equal(mask, two[name]) for name, mask in one.items())
