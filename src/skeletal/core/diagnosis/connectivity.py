"""Does any path lead from the input to the output?"""

from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from skeletal.core.diagnosis.probing import ATTEMPTS, differ, first_that_runs, many_of, outputs_of, shorten
from skeletal.core.diagnosis.structure import MORE, Draw, random_positive, stand_ins
from skeletal.core.model.batches import forward, map_inputs, map_tensors, to_device
from skeletal.core.model.preserve import device_of, set_mode, with_parameters
from skeletal.core.model.state.random_state import seed_all
from skeletal.core.model.tensors import Tensors

_DRAWS = 8  # of either sign, before the answer is no


def reaches_output(model: nn.Module, mask: Tensors, batch: Any) -> tuple[bool | None, str]:
    """Whether the output of a masked network still depends on its input, judged by the mask alone.

    The network runs in eval mode, on random inputs. Only the absence of a path should make its output independent
    of them, never an unlucky ReLU or zero weight; so whatever cannot open or close a path is made
    harmless (see `stand_ins`): weights random and positive, biases 0, floating-point inputs positive. Everything is
    in double precision, so that a signal may shrink by many orders of magnitude. Then the output depends on
    the input if a random projection of it has a non-zero gradient there, or if it changes with it; token
    inputs, which have no gradient, are exchanged for others from the same batch. Before the answer is no, the network
    runs with random signs too, on more examples: some need negative values, as CReLU, or send few examples each way.

    Args:
        model: in any mode; the caller restores it (see `preserve_model`).
        mask: bool, by parameter name.
        batch: any batch of the kind the model takes; only its shapes and integers are used.

    Returns:
        The answer, or None and the reason if the network cannot be probed.

    """
    mask = {name: keep.to(device_of(model)) for name, keep in mask.items()}
    set_mode(model, False)

    def attempt(
        examples: Any, dtype: torch.dtype | None, scale: float = 1.0, signs: Draw = random_positive, seed: int = 0
    ) -> tuple[bool | None, str]:
        state = stand_ins(model, mask, dtype, 0.0, torch.Generator().manual_seed(seed), signs)
        return _probe(model, state, examples, dtype, scale, signs)

    try:
        found = first_that_runs(model, [partial(attempt, shorten(batch, few), dtype) for few, dtype in ATTEMPTS])
        if found[0] is not False:
            return found
    except ValueError as error:  # an error on made-up inputs says nothing about the mask
        return None, str(error)
    many = many_of(batch)
    for seed in range(_DRAWS):
        how = (*MORE[seed % len(MORE)], seed)
        with suppress(ValueError):  # negative inputs may be no inputs
            again = [partial(attempt, many, dtype, *how) for dtype in (torch.float64, None)]
            if first_that_runs(model, again)[0]:
                return True, ""
    return found


def _probe(
    model: nn.Module, state: Tensors, batch: Any, dtype: torch.dtype | None, scale: float, signs: Draw
) -> tuple[bool | None, str]:
    generator = torch.Generator().manual_seed(1)
    floats: list[Tensor] = []
    sparse: list[Tensor] = []

    def run(inputs: Any) -> list[Tensor]:
        seed_all(0, model)  # a model that is random even in eval mode has to be random in the same way
        found = list(outputs_of(with_parameters(model, state, lambda: forward(model, inputs))))
        if any(not torch.isfinite(output).all() for output in found):
            raise OverflowError("the probing signal overflows")
        return found

    def draw(size: float) -> Any:
        def drawn_like(tensor: Tensor) -> Tensor:
            if not tensor.is_floating_point():
                return tensor
            drawn = size * signs(tensor, dtype, generator)
            if tensor.layout != torch.strided:  # whether it changes anything is seen from another draw
                sparse.append(drawn)
                return drawn
            floats.append(drawn.requires_grad_())
            return floats[-1]

        return map_inputs(drawn_like, batch)

    batch = to_device(batch, device_of(model))
    one = run(draw(scale))
    if not one:
        return None, "the model returns no floating-point tensor"
    if floats or sparse:
        projection = sum((output * random_positive(output, None, generator)).sum() for output in one)
        if floats and isinstance(projection, Tensor) and projection.requires_grad:
            gradients = torch.autograd.grad(projection, floats, allow_unused=True)
            if any(gradient is not None and gradient.ne(0).any() for gradient in gradients):
                return True, ""
        return any(map(differ, one, run(draw(2 * scale)))), ""
    others = [map_inputs(lambda t: _exchange(t, generator), batch) for _ in range(3)]
    if all(_same(batch, other) for other in others):
        return None, "all the batch's inputs are the same"
    return any(any(map(differ, one, run(other))) for other in others), ""


def _exchange(tensor: Tensor, generator: torch.Generator) -> Tensor:
    if tensor.dtype == torch.bool or not tensor.numel():
        return tensor
    values = tensor.flatten()
    picks = torch.randint(len(values), tensor.shape, generator=generator, device="cpu")
    return values[picks.to(values.device)]


def _same(one: Any, two: Any) -> bool:
    flat: list[list[Tensor]] = [[], []]
    for tree, found in zip((one, two), flat, strict=True):
        map_tensors(lambda tensor, found=found: found.append(tensor) or tensor, tree)
    return all(torch.equal(a, b) for a, b in zip(*flat, strict=True))
