"""Synaptic flow: how much of all paths' products passes through each weight. Without data."""

from collections.abc import Container

import torch
from torch import Tensor, nn

from skeletal.core.diagnosis.probing import shorten
from skeletal.core.diagnosis.structure import STATISTICS, stored_values, with_values
from skeletal.core.model.batches import map_inputs, to_device
from skeletal.core.model.passes import Passes, passed
from skeletal.core.model.preserve import device_of, differentiable, set_mode, state_of, with_parameters
from skeletal.core.model.recompute import refuse_reentrant
from skeletal.core.model.tensors import Tensors
from skeletal.core.model.weights import is_bias
from skeletal.core.pruning.criteria.inputs import along_paths, check_dependent, tensor_from


def synaptic_flow(model: nn.Module, weights: Tensors, batch: object) -> Tensors:
    """|w| ⊙ ∂R/∂|w|, where R is the sum of the outputs for an input of ones through absolute weights.

    As in Tanaka et al. 2020, Eq. 2, with these choices. Batch norm only multiplies by its scale / √(1 + eps): eval
    mode, running mean 0 and variance 1, as at initialization and in public code, whatever the model has seen since.
    Layer, group, instance and RMS norm, which would divide by the size of their input, only multiply by their scale.
    Biases are 0: they are not part of a path from the input. Everything is in double precision; R is linear in the
    input, so if it overflows, the input is scaled down by a power of two, which changes no ranking.

    Args:
        model: in any mode; the caller restores it.
        weights: values by parameter name, pruned ones zero.
        batch: only the shapes of one example's inputs are used.

    Raises:
        ValueError: the inputs are not floating-point numbers; no scale avoids an overflow; the outputs have no
            gradient; or the network does not run in doubles.

    """
    set_mode(model, False)
    state = positive_state(model, weights)
    leaves = {name: value.detach().double().abs().requires_grad_() for name, value in weights.items()}
    floats = []

    def ones(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        floats.append(torch.ones_like(stored_values(tensor), dtype=torch.float64))
        return with_values(tensor, floats[-1])

    example = map_inputs(ones, shorten(to_device(batch, device_of(model)), 1))
    if not floats:
        raise ValueError("synflow sends an input of ones through the network; this one takes no floating-point input")
    with differentiable(), along_paths("synflow"):
        for exponent in (0, -300, -600, -900):
            for value in floats:
                value.fill_(2.0**exponent)
            outputs = with_parameters(model, state | leaves, lambda: tensor_from(model, example, "synflow"))
            if not torch.isfinite(outputs).all():
                passed(Passes("forward", 1, fresh=False))
                continue
            check_dependent(outputs, "synflow")
            passed(Passes("gradient", 1, fresh=False))
            refuse_reentrant(outputs)
            gradients = torch.autograd.grad(outputs.sum(), list(leaves.values()), allow_unused=True)
            scores = {
                name: torch.zeros_like(leaf) if gradient is None else leaf.detach() * gradient
                for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True)
            }
            if all(torch.isfinite(score).all() for score in scores.values()):
                return scores
    raise ValueError("the synaptic flow overflows at every scale of the input")


def positive_state(model: nn.Module, without: Container[str]) -> Tensors:
    """Parameters and buffers, in doubles, with which a network only adds and multiplies positive numbers.

    Absolute values, biases 0, batch norm the identity except for its scale; without the parameters named in `without`.
    """
    parameters = {name for name, _ in model.named_parameters()}
    state = {}
    for name, value in state_of(model, without=without).items():
        leaf = name.rpartition(".")[2]
        if value.is_floating_point() or value.is_complex():
            value = value.to(torch.complex128 if value.is_complex() else torch.float64)
            if leaf in STATISTICS:
                value.fill_(STATISTICS[leaf])
            elif is_bias(name):
                value.zero_()
            elif name in parameters:
                value.copy_(value.abs())
        state[name] = value
    return state


def counting_state(model: nn.Module, without: Container[str]) -> Tensors:
    """As `positive_state`, but with 1 for every parameter that is not 0: what comes out is a number of paths."""
    names = {name for name, _ in model.named_parameters()}
    state = positive_state(model, without)
    return {name: value.ne(0).to(value.dtype) if name in names else value for name, value in state.items()}
