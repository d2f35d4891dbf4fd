"""Repaired masks keep their total."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import skeletal
from skeletal.core.masks.repair import repair
from tests.cases import random_mask

SIZES = [(4, 5), (3, 2), (1, 1), (6, 6), (2, 7)]


def chain(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.ModuleList(nn.Linear(inputs, outputs) for outputs, inputs in SIZES)


@given(st.integers(0, 10_000), st.floats(0.05, 1), st.integers(1, 8))
def test_repair_keeps_the_total_and_moves_no_more_than_it_has_to(seed, density, at_least):
    model = chain(seed)
    tensors = random_mask(model, density, seed)
    tensors["1.weight"].zero_()
    mask = skeletal.Mask(tensors, {"method": "random"})
    floors = {name: min(at_least, keep.numel()) for name, keep in mask.items()}
    if sum(floors.values()) > mask.kept:
        with pytest.raises(ValueError, match="but only"):
            repair(mask, model, at_least)
        return
    repaired = repair(mask, model, at_least)
    assert repaired.kept == mask.kept and repaired.metadata["method"] == "random"
    added = repaired.metadata["repaired"]
    assert added["1.weight"] == floors["1.weight"]
    given_up = {}
    for name, old in mask.items():
        new, size = repaired[name], model.get_parameter(name).abs()
        assert new.sum() >= floors[name]
        assert added.get(name, 0) == max(floors[name] - int(old.sum()), 0)
        if name in added:
            assert (new | ~old).all() and size[new & ~old].min() >= size[~new].max() if not new.all() else True
        else:
            assert (old | ~new).all()
            if gone := int((old & ~new).sum()):
                assert size[old & ~new].max() < size[new].min()
                given_up[name] = gone
    if given_up:  # from the layers with most: none that gave has fewer than others have, but for one
        least = min(int(repaired[name].sum()) for name in given_up)
        assert all(int(repaired[name].sum()) <= least + 1 for name in mask if name not in added)
    assert repair(repaired, model, at_least) == repaired


def test_repair_that_has_nothing_to_do_or_cannot():
    model = chain(0)
    mask = skeletal.Mask(random_mask(model, 1.0), {"connected": True})
    same = repair(mask, model)
    assert same == mask and same.metadata == {"connected": True, "repaired": {}}
    few = {name: torch.zeros_like(keep) for name, keep in mask.items()}
    few["3.weight"].view(-1)[:4] = True
    with pytest.raises(ValueError, match="in each of 5 layers takes 5 weights, but only 4 are kept"):
        repair(skeletal.Mask(few), model)
    few["3.weight"].view(-1)[:5] = True
    repaired = repair(skeletal.Mask(few, {"connected": False}), model)
    assert [int(keep.sum()) for keep in repaired.values()] == [1] * 5
    assert repaired.metadata["connected"] is None
    with pytest.raises(ValueError, match="at_least is 0"):
        repair(mask, model, 0)
    with pytest.raises(skeletal.MaskError, match="belongs to another model"):
        repair(mask, nn.Linear(2, 2))
