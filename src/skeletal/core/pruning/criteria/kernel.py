"""How much each weight contributes to the spectrum of the neural tangent kernel. Without data, and without weights."""

import torch
from torch import Tensor, nn

from skeletal.core.model.batches import examples, map_inputs, to_device
from skeletal.core.model.distributed import average_over_ranks, everyone, rank
from skeletal.core.model.passes import Passes, passed
from skeletal.core.model.precision import autocast
from skeletal.core.model.preserve import (
    device_of,
    differentiable,
    preserve_random_state,
    state_of,
    with_parameters,
)
from skeletal.core.model.recompute import refuse_reentrant
from skeletal.core.model.state.random_state import seed_all
from skeletal.core.model.tensors import Tensors
from skeletal.core.pruning.criteria.inputs import check_dependent, tensor_from

SPREAD = 1e-2
"""standard deviation of Δ, √ε"""


def tangent_kernel_saliency(
    model: nn.Module, weights: Tensors, mask: Tensors, batch: object, generator: torch.Generator
) -> Tensors:
    """|∂/∂c of ‖f(x; θ₀ ⊙ c) - f(x; (θ₀ + Δ) ⊙ c)‖²| at the present mask c, summed over examples and outputs.

    For a small Δ ~ N(0, εI) its mean over Δ is ε times the trace of the tangent kernel, its nuclear norm (NTK-SAP,
    Wang et al. 2023, "Improving Neural Network Pruning by Aligning Training Dynamics"). Inputs x are noise N(0, 1) in
    the shape of the batch; over several processes, of all their batches together, of which each takes its own part.
    Weights θ₀ are noise as well, drawn anew at every call with each layer's mean square: many realisations, one per
    pruning step, stand for the expectation.

    Args:
        model: in the mode it is scored in; never written to.
        weights: only names, shapes and mean squares are used.
        mask: c, bool.
        batch: shapes and types of its inputs are used.
        generator: on the CPU, the source of all noise.

    Raises:
        ValueError: the inputs are not floating-point numbers, or the model returns no tensor.

    """
    floats = []
    counts, own = everyone(examples(batch)), rank()
    first, end = sum(counts[:own]), sum(counts[: own + 1])

    def noise(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        if tensor.dim() and len(tensor) == counts[own]:
            floats.append(normal(tensor.new_empty(sum(counts), *tensor.shape[1:]), generator)[first:end])
        else:
            floats.append(normal(tensor, generator))
        return floats[-1]

    inputs = map_inputs(noise, to_device(batch, device_of(model)))
    generator.set_state(everyone(generator.get_state())[0])  # it has moved on by the size of inputs
    if not floats:
        raise ValueError("ntk-sap sends noise through the network; this one takes no floating-point input")
    drawn = {name: normal(value, generator) * value.square().mean().sqrt() for name, value in weights.items()}
    moved = {name: value + SPREAD * normal(value, generator) for name, value in drawn.items()}
    parameters = dict(model.named_parameters())
    leaves = {name: keep.to(weights[name].dtype).requires_grad_() for name, keep in mask.items()}
    seed = int(torch.randint(2**31, (), generator=generator, device="cpu"))

    def outputs_at(values: Tensors) -> Tensor:
        masked = {name: (value * leaves[name]).to(parameters[name].dtype) for name, value in values.items()}
        state = state_of(model, without=weights) | masked
        with preserve_random_state(model):
            seed_all(seed, model)  # the same dropout in both
            return with_parameters(model, state, lambda: tensor_from(model, inputs, "ntk-sap"))

    with differentiable(), autocast("float32", device_of(model)):
        distance = (outputs_at(drawn) - outputs_at(moved)).square().sum()
        check_dependent(distance, "ntk-sap")
        refuse_reentrant(distance)
        gradients = torch.autograd.grad(distance, list(leaves.values()), allow_unused=True)
    passed(Passes("gradient", 2 * examples(inputs), fresh=False))
    found = {
        name: torch.zeros_like(leaf.detach()) if gradient is None else gradient
        for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True)
    }
    average_over_ranks(found)  # the sum, up to a factor
    return {name: gradient.abs() for name, gradient in found.items()}


def normal(like: Tensor, generator: torch.Generator) -> Tensor:
    """Numbers from N(0, 1) of a tensor's shape, type and device."""
    return torch.randn(
        like.shape, generator=generator, dtype=torch.promote_types(like.dtype, torch.float32), device="cpu"
    ).to(like)
