"""Passes are priced as they are executed: by hand, and against torch's own counter where all weights are kept."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from skeletal.core.model.batches import Cycle
from skeletal.core.model.gradients import Derivatives
from skeletal.core.model.passes import Passes, listening
from skeletal.core.model.weights import prunable_weights
from skeletal.core.pruning.criteria.balance import balanced_masks
from skeletal.core.pruning.criteria.exclusion import path_exclusion
from skeletal.core.pruning.criteria.flow import synaptic_flow
from skeletal.core.pruning.criteria.kernel import tangent_kernel_saliency
from skeletal.core.pruning.methods import METHODS
from skeletal.core.pruning.prune import prune
from skeletal.harness.ledger import Cost
from skeletal.harness.meter import Meter, uses_of

N = 7


def mlp():
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))


def convnet():
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Tanh(), nn.Conv2d(3, 4, 3, groups=1), nn.Tanh(),
        nn.Flatten(), nn.Linear(64, 5), nn.Tanh(), nn.Linear(5, 3),
    )  # fmt: skip


NETWORKS = [(mlp, (6,)), (convnet, (2, 6, 6))]


def counted(model, shape, function):
    """A function's passes through a network with all its weights, as we and as torch count multiply-adds."""
    weights = {name: weight.detach() for name, weight in prunable_weights(model).items()}
    batch = torch.randn(N, *shape), torch.arange(N) % 3
    meter = Meter(uses_of(model, batch[0][:1]))
    with listening(meter.add), FlopCounterMode(display=False) as theirs:
        function(model, weights, batch)
    assert meter.cost.macs_kept == meter.cost.macs_dense
    return meter.cost, theirs.get_total_flops() / 2


def gradient(model, weights, batch):
    Derivatives(model, Cycle([batch]), 3).gradient(weights)


def gradient_in_pieces(model, weights, batch):
    Derivatives(model, Cycle([batch]), 1, micro_batch=3).gradient(weights)


def hessian_gradient(model, weights, batch):
    Derivatives(model, Cycle([batch]), 2).hessian_gradient(weights)


def unrolled(model, weights, batch):
    Derivatives(model, Cycle([batch]), 1).unrolled_gradient(weights, steps=2, rate=0.1)


def flow(model, weights, batch):
    synaptic_flow(model, weights, batch)


def kernel(model, weights, batch):
    mask = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    tangent_kernel_saliency(model, weights, mask, batch, torch.Generator())


def exclusion(model, weights, batch):
    mask = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    path_exclusion(Derivatives(model, Cycle([batch]), 1, micro_batch=4), weights, mask)


def balance(model, weights, batch):
    quotas = {name: weight.numel() for name, weight in weights.items()}
    balanced_masks(model, weights, batch, quotas, torch.Generator())


@pytest.mark.parametrize(("make", "shape"), NETWORKS)
@pytest.mark.parametrize(
    ("function", "examples"),
    [
        (gradient, 3 * N), (gradient_in_pieces, N), (hessian_gradient, 2 * N), (unrolled, 3 * N), (flow, 0),
        (kernel, 0), (exclusion, N), (balance, 0),
    ],
)  # fmt: skip
def test_dense_passes_are_those_that_torch_counts(make, shape, function, examples):
    cost, theirs = counted(make(), shape, function)
    products = {hessian_gradient: 2, unrolled: 2}.get(function, 0)
    # Of a convolution, torch takes the second derivative with one operation more than the first layer has use for.
    wasted = products * N * 54 * 36 if make is convnet else 0
    assert cost.macs_dense == theirs - wasted and cost.examples == examples


@pytest.mark.parametrize("method", METHODS)
def test_every_method_that_runs_the_network_says_so(method):
    heard = []
    steps = None if METHODS[method].one_shot else 2
    with listening(heard.append):
        prune(convnet(), [(torch.randn(N, 2, 6, 6), torch.arange(N) % 3)], density=0.5, method=method, steps=steps)
    walks = method == "phew"  # whose walks multiply nothing
    assert bool(heard) == (METHODS[method].needs_data and not walks)


def test_pruned_weights_count_nothing_unless_their_gradients_are_needed():
    model = mlp()
    first, second, third = 30, 20, 12
    a, b, c = 4, 3, 2  # kept
    mask = {name: torch.zeros(weight.shape, dtype=torch.bool) for name, weight in prunable_weights(model).items()}
    for keep, kept in zip(mask.values(), (a, b, c), strict=True):
        keep.view(-1)[:kept] = True
    uses = uses_of(model, torch.zeros(1, 6))
    dense, kept = first + second + third, a + b + c
    meter = Meter(uses, mask)
    assert meter.price(Passes("forward", 5)) == Cost(5, 5 * dense, 5 * kept)
    back_dense, back = dense + second + third, kept + b + c  # to the weights, and to the inputs of all but the first
    assert meter.price(Passes("gradient", 1)) == Cost(1, dense, kept, back_dense, back)
    everywhere = Cost(1, dense, kept, back_dense, dense + b + c)
    assert meter.price(Passes("gradient", 1, everywhere=True)) == everywhere
    assert Meter(uses, mask, everywhere=True).price(Passes("gradient", 1)) == everywhere
    # Backward through both passes: the vector, whose entries at pruned weights are not 0, in the weights' place in each
    # of them, then to the weights through each, then to the inputs through each.
    before, vector, inputs = dense + b + c, dense + second + third, 2 * (b + c)
    found = meter.price(Passes("hessian", 1, fresh=False))
    assert found.examples == 0 and found.forward_kept == kept
    assert found.backward_kept == before + vector + (kept + b + c) + inputs
    found = meter.price(Passes("hessian", 1, everywhere=True))
    assert found.backward_kept == before + vector + (dense + second + third) + inputs
    assert found.backward_dense == back_dense + 2 * (dense + second + third) + 2 * (second + third)
    meter.turn_to(None)
    assert meter.price(Passes("gradient", 1)) == Cost(1, dense, dense, back_dense, back_dense)


def test_the_price_is_that_of_the_mask_at_the_moment():
    model = mlp()
    half = {name: torch.zeros(weight.shape, dtype=torch.bool) for name, weight in prunable_weights(model).items()}
    meter = Meter(uses_of(model, torch.zeros(1, 6)))
    meter.add(Passes("forward", 2))
    meter.turn_to(half)
    meter.add(Passes("forward", 3))
    assert meter.cost == Cost(examples=5, forward_dense=5 * 62, forward_kept=2 * 62)


def test_a_network_without_prunable_weights_costs_nothing():
    assert Meter(uses_of(nn.BatchNorm1d(3), torch.zeros(1, 3))).price(Passes("gradient", 4)) == Cost(4)
