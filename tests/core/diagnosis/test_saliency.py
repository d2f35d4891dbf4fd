import copy

import pytest
import torch
from torch.nn.functional import cross_entropy

from skeletal.core.diagnosis.saliency import measure_saliency
from skeletal.core.errors import MaskError
from skeletal.core.model.weights import prunable_weights
from skeletal.core.pruning.prune import prune
from tests.cases import convnet, images, random_mask
from tests.unchanged import assert_same, everything_about


def slowly(model, batches, mask):
    """The two sums by one ordinary backward pass a batch, on a copy whose pruned weights are really zero."""
    model = copy.deepcopy(model).train().double()
    weights = prunable_weights(model)
    for name, weight in weights.items():
        weight.data *= mask[name]
    for inputs, targets in batches:
        (cross_entropy(model(inputs.double()), targets) / len(batches)).backward()
    force = sum((weight * weight.grad).abs().sum().item() for weight in weights.values())
    norm = sum((weight.grad[mask[name]] ** 2).sum().item() for name, weight in weights.items())
    return force, norm


@pytest.mark.parametrize("density", [1.0, 0.3, 0.05])
def test_both_sums_are_those_of_a_plain_backward_pass(density):
    model, batches = convnet(), images(3)
    mask = random_mask(model, density)
    before = everything_about(model)
    found = measure_saliency(model, batches, mask, count=3)
    assert_same(before, everything_about(model))
    force, norm = slowly(model, batches, mask)
    assert found.force == pytest.approx(force, rel=1e-4)
    assert found.gradient_norm == pytest.approx(norm, rel=1e-4)


def test_at_the_dense_network_it_is_the_sum_of_snips_scores():
    model, batches = convnet(), images(2)
    steps = []
    prune(model, batches, density=0.5, method="snip", batches_per_step=2, on_step=steps.append)
    everything = {name: torch.ones_like(weight) for name, weight in prunable_weights(model).items()}
    found = measure_saliency(model, batches, everything, count=2)
    assert found.force == pytest.approx(sum(score.sum().item() for score in steps[0].scores.values()), rel=1e-5)


def test_nothing_kept_is_nothing():
    model = convnet()
    found = measure_saliency(model, images(1), random_mask(model, 0.0), count=1)
    assert (found.force, found.gradient_norm) == (0.0, 0.0) and found.loss > 0


def test_a_mean_over_more_batches_is_smaller():
    model, batches = convnet(), images(8)
    mask = random_mask(model, 0.5)
    one, eight = (measure_saliency(model, batches, mask, count=n) for n in (1, 8))
    assert eight.gradient_norm < one.gradient_norm


def test_what_is_refused():
    model = convnet()
    mask = random_mask(model, 0.5)
    with pytest.raises(ValueError, match="count is 0; it has to be at least 1"):
        measure_saliency(model, images(1), mask, count=0)
    with pytest.raises(ValueError, match="unknown bn_mode 'off'"):
        measure_saliency(model, images(1), mask, count=1, bn_mode="off")
    with pytest.raises(ValueError, match="batches is empty"):
        measure_saliency(model, [], mask, count=1)
    with pytest.raises(MaskError, match="belongs to another model"):
        measure_saliency(convnet(width=4), images(1), mask, count=1)
