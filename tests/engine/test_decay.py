"""Weight decay of compiled networks: who forgets it for kept weights is told so, once."""

import gc
import warnings

import pytest
import torch
from torch.optim import optimizer as optimizers

import skeletal
from skeletal.engine.compiled import Compiled
from tests.cases import convnet, random_mask

LOST = "none of the compiled network's kept weights"


def compiled(seed: int = 0) -> Compiled:
    model = convnet(seed)
    return skeletal.compile(model, skeletal.Mask(random_mask(model, 0.3)), torch.randn(5, 3, 6, 6), path="dense")


def by_dimensions(network) -> torch.optim.Optimizer:
    """As a usual recipe has it: no weight decay where there is one dimension."""
    groups = [[], []]
    for parameter in network.parameters():
        groups[parameter.dim() <= 1].append(parameter)
    return torch.optim.SGD([{"params": groups[0], "weight_decay": 0.1}, {"params": groups[1]}], lr=0.1)


def steps(network, optimizer, count: int = 2) -> list[str]:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(count):
            network(torch.randn(5, 3, 6, 6)).sum().backward()
            optimizer.step()
    return [str(warning.message) for warning in said]


def test_lost_decay_is_told_once():
    network = compiled()
    network.extra = torch.nn.Parameter(torch.zeros(2, 2))  # what the recipe takes for the only weight
    optimizer = by_dimensions(network)
    optimizer.add_param_group({"params": [network.extra], "weight_decay": 0.1})
    (said,) = steps(network, optimizer)
    assert LOST in said and "param_groups" in said
    assert steps(network, optimizer) == []


def test_lost_decay_is_told_where_the_recipe_finds_no_weight_at_all():
    network = compiled()
    (said,) = steps(network, by_dimensions(network))
    assert LOST in said


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_decay_that_is_not_lost(decay):
    network = compiled()
    assert steps(network, torch.optim.SGD(network.parameters(), lr=0.1, weight_decay=decay)) == []
    network = compiled()
    assert steps(network, torch.optim.SGD(network.param_groups(decay), lr=0.1)) == []


def test_networks_are_told_apart():
    """The step of another network's optimizer says nothing about this one."""
    network, other = compiled(), compiled(1)
    network.extra = torch.nn.Parameter(torch.zeros(2, 2))
    assert steps(other, torch.optim.SGD(other.parameters(), lr=0.1)) == []
    optimizer = by_dimensions(network)
    optimizer.add_param_group({"params": [network.extra], "weight_decay": 0.1})
    assert len(steps(network, optimizer)) == 1


def test_decay_as_recipes_have_it():
    """Decayed are the parameters whose dense counterparts have more than one dimension."""
    network = compiled()
    dense = {name: parameter.dim() for name, parameter in network.to_dense().named_parameters()}
    decayed, others = ({id(p) for p in group["params"]} for group in network.param_groups(0.1, no_decay=("8.weight",)))
    for name, parameter in network.named_parameters():
        assert (id(parameter) in decayed) == (dense[name] > 1 and name != "8.weight") != (id(parameter) in others)


def test_one_hook_for_all_networks():
    """A hook for each network would make every optimizer of the process slower for good."""
    first = compiled()
    hooks = len(optimizers._global_optimizer_pre_hooks)
    more = [compiled(seed) for seed in range(1, 4)]
    assert len(optimizers._global_optimizer_pre_hooks) == hooks
    del first, more
    gc.collect()
    one = compiled()
    assert steps(one, torch.optim.SGD(one.parameters(), lr=0.1)) == []
