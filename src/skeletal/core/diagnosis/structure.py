"""A network reduced to its structure: what its architecture and a mask let through, whatever its weights are."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from skeletal.core.model.preserve import state_of
from skeletal.core.model.tensors import Tensors
from skeletal.core.model.weights import is_bias

FAKE_QUANTIZATION = ("fake_quant_enabled", "observer_enabled")  # switches, as buffers
STATISTICS = {"running_mean": 0.0, "running_var": 1.0}  # of a batch norm that has seen nothing

Draw = Callable[[Tensor, torch.dtype | None, torch.Generator], Tensor]
"""`random_positive` or `random_signed`"""


def random_positive(like: Tensor, dtype: torch.dtype | None, generator: torch.Generator) -> Tensor:
    """Between 0.5 and 1.5, with the shape, device and, unless another is given, dtype of a tensor."""
    if like.layout != torch.strided:
        return with_values(like, random_positive(stored_values(like), dtype, generator))
    return (0.5 + torch.rand(like.shape, generator=generator, device="cpu")).to(like.device, dtype or like.dtype)


def random_signed(like: Tensor, dtype: torch.dtype | None, generator: torch.Generator) -> Tensor:
    """As `random_positive`, but some are negative: on average a share of them that is random itself."""
    if like.layout != torch.strided:
        return with_values(like, random_signed(stored_values(like), dtype, generator))
    share = torch.rand((), generator=generator, device="cpu")
    negative = torch.rand(like.shape, generator=generator, device="cpu") < share
    values = random_positive(like, dtype, generator)
    return torch.where(negative.to(values.device), -values, values)


MORE: tuple[tuple[float, Draw], ...] = (
    (1.0, random_signed),
    (2.0**10, random_positive),
    (2.0**10, random_signed),
)
"""scales and signs of draws for what positive draws of moderate size do not reach"""


def stand_ins(
    model: nn.Module,
    mask: Tensors,
    dtype: torch.dtype | None,
    bias: float,
    generator: torch.Generator,
    draw: Draw = random_positive,
) -> Tensors:
    """All parameters and buffers, set so that a signal passes exactly where the mask lets it.

    Weights become random and positive on the mask, those that enter a unit summing to 1 (no overflow, however
    deep), norm scales 1, batch-norm statistics 0 and 1, biases random times `bias`. With `random_signed`, these are
    absolute values.

    Args:
        model: is not changed.
        mask: bool, by parameter name, on the model's device; weights that it does not name are all kept.
        dtype: of floating-point stand-ins; None keeps their own.
        bias: 0 leaves only paths from the input.
        generator: for the random numbers, on the CPU.
        draw: weights and biases.

    """
    parameters = {name for name, _ in model.named_parameters()}
    state = state_of(model)
    for name, value in state.items():
        leaf = name.rpartition(".")[2]
        if leaf in FAKE_QUANTIZATION:
            value.zero_()  # it would round stand-ins to 0: they are small next to the weights it was set up for
        if not value.is_floating_point():
            continue
        value = value if dtype is None else value.to(dtype)
        if leaf in STATISTICS:
            value.fill_(STATISTICS[leaf])
        elif name in parameters:
            keep = mask.get(name, torch.ones_like(value))
            if is_bias(name):
                value = draw(value, dtype, generator) * bias * keep
            elif value.dim() > 1:
                value = draw(value, dtype, generator) * keep
                sums = value.abs().flatten(1).sum(1).clamp(min=1e-30)  # into each unit; of each input, where transposed
                value /= sums.view(-1, *[1] * (value.dim() - 1))
            else:
                value = torch.ones_like(value) * keep
        state[name] = value
    return state


def stored_values(tensor: Tensor) -> Tensor:
    """What a sparse tensor (COO or CSR) stores; the tensor itself where it is dense."""
    if tensor.layout == torch.strided:
        return tensor
    return tensor.coalesce().values() if tensor.layout == torch.sparse_coo else tensor.values()


def with_values(like: Tensor, values: Tensor) -> Tensor:
    """A sparse tensor (COO or CSR) of the same pattern, with the memory of these values; those, where it is dense."""
    if like.layout == torch.sparse_coo:
        indices = like.coalesce().indices()
        return torch.sparse_coo_tensor(
            indices, values, like.shape, device=values.device, is_coalesced=True, check_invariants=False
        )
    if like.layout == torch.sparse_csr:
        return torch.sparse_csr_tensor(
            like.crow_indices(), like.col_indices(), values, like.shape, device=values.device
        )
    return values
