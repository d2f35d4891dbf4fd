"""Masks of whole channels: chosen as loops choose them, and nothing but a narrower dense network when compacted."""

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import skeletal
from skeletal.compaction.coupling import couple
from skeletal.core.model.weights import prunable_weights
from skeletal.core.patterns.channels import CHANNELS, Channels
from skeletal.core.patterns.pattern import Patterned
from tests.cases import Residual, convnet, images, mlp


class Grouped(nn.Module):
    """A depthwise convolution between two others, and a transposed one in groups."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 1)
        self.depthwise = nn.Conv2d(6, 12, 3, padding=1, groups=6)
        self.up = nn.ConvTranspose2d(12, 8, 2, stride=2, groups=2)
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        x = torch.relu(self.up(torch.relu(self.depthwise(torch.relu(self.stem(x))))))
        return self.head(x.mean((2, 3)))


def choose(coupling, scores, available, count):
    """The pattern spelled out: the best n channels, as many as fit; None if not even one of each layer fits."""
    groups = {}
    for name, keep in available.items():
        writes, reads = coupling.writes[name].tolist(), coupling.reads[name].tolist()
        for o, i, k in keep.nonzero().tolist():
            for c in {writes[o], reads[o][i]} - {coupling.count}:
                groups.setdefault(c, []).append(float(scores[name][o, i, k]))
    ranks = {c: (not any(group), -sum(group) / len(group), c) for c, group in groups.items()}
    best = set()
    for writes in coupling.writes.values():
        if coupling.count not in writes.tolist():
            best.add(min((c for c in writes.tolist() if c in ranks), key=lambda c: ranks[c]))
    order = sorted(ranks, key=lambda c: (c not in best, ranks[c]))
    for n in range(len(order), len(best) - 1, -1):
        channels = {*order[:n], coupling.count}
        keep = {}
        for name, writes in coupling.writes.items():
            reads = coupling.reads[name].tolist()
            inside = [
                [w in channels and r in channels for r in row] for w, row in zip(writes.tolist(), reads, strict=True)
            ]
            keep[name] = available[name] & torch.tensor(inside)[:, :, None]
        if sum(int(k.sum()) for k in keep.values()) <= count:
            return keep
    return None


@cache
def network(number):
    model = [convnet, Residual, Grouped][number]()
    weights = prunable_weights(model)
    return model, weights, couple(model, weights, images(1)[0])


@settings(max_examples=25)
@given(st.integers(0, 2), st.integers(0, 999), st.floats(0.02, 1))
def test_a_choice_is_that_of_loops_over_channels(number, seed, density):
    model, weights, coupling = network(number)
    generator = torch.Generator().manual_seed(seed)
    patterned = Patterned(Channels(CHANNELS, lambda *_: coupling), model, weights, images(1)[0])
    scores = {name: torch.randint(-1, 4, w.shape, generator=generator) / 4.0 for name, w in weights.items()}
    available = {name: torch.ones_like(w, dtype=torch.bool) for name, w in weights.items()}
    for share in (density, density / 2):
        count = round(share * sum(w.numel() for w in weights.values()))
        units = [patterned._units(tensors) for tensors in (scores, available)]
        expected = choose(coupling, *units, count)
        if expected is None:
            with pytest.raises(ValueError, match="density has to be at least"):
                patterned.choose(scores, available, count)
            return
        available = patterned.choose(scores, available, count).keep
        found = patterned._units(available)
        assert all(torch.equal(found[name], keep) for name, keep in expected.items())


@pytest.mark.parametrize("make", [convnet, Residual, mlp, Grouped])
@pytest.mark.parametrize("method", ["snip", "force", "force-regrow"])
def test_a_mask_of_channels_compacts_to_a_narrower_dense_network(make, method):
    model, data = make(), images(4)
    steps = {} if method == "snip" else {"steps": 3}
    mask = skeletal.prune(model, data, density=0.6, method=method, pattern="channels", on_collapse="keep", **steps)
    assert 0 < mask.density <= 0.6
    assert mask.metadata["connected"]
    small = skeletal.compact(model, mask, data[0])
    assert all(keep.all() for keep in small.mask.values())
    assert sum(keep.numel() for keep in small.mask.values()) == mask.kept
    mask.attach(model)
    x = data[1][0]
    torch.testing.assert_close(small.model.eval()(x), model.eval()(x), rtol=1e-4, atol=1e-5)
    if make is convnet:  # the parameters of the same network, built narrower
        widths = [small.model.get_submodule(name).out_channels for name in ("0", "3")]
        a, b = widths
        narrow = 27 * a + 2 * a + 9 * a * b + b + 2 * b + 10 * b + 10
        assert sum(parameter.numel() for parameter in small.model.parameters()) == narrow


def test_channels_that_are_added_are_one_and_logits_and_inputs_stay():
    model = Residual()
    coupling = couple(model, prunable_weights(model), images(1)[0])
    stem, block, head = coupling.writes.values()
    assert coupling.count == 6
    assert torch.equal(stem, block)
    assert torch.equal(coupling.reads["head.weight"], stem.expand(10, 6))
    assert torch.equal(coupling.reads["block.0.weight"], stem.expand(6, 6))
    assert (head == 6).all()
    assert (coupling.reads["stem.weight"] == 6).all()


def test_groups_of_a_convolution_go_as_a_whole():
    model = Grouped()
    coupling = couple(model, prunable_weights(model), images(1)[0])
    # Each half of the transposed one reads three depthwise groups, so that all of them go together.
    assert coupling.count == 2
    assert coupling.writes["stem.weight"].tolist() == [0, 0, 0, 1, 1, 1]
    assert coupling.writes["depthwise.weight"].tolist() == [0] * 6 + [1] * 6
    assert coupling.writes["up.weight"].tolist() == [0] * 4 + [1] * 4


def test_channels_that_other_weights_write_stay():
    model, data = Residual(), images(2)
    coupling = couple(model, prunable_weights(model, ["block.0.weight", "head.weight"]), data[0])
    assert coupling.count == 0  # the stem writes them, too
    with pytest.raises(ValueError, match="density has to be at least 1"):
        skeletal.prune(model, data, density=0.5, method="snip", pattern="channels", prunable=["block.0.weight"])


def test_a_network_without_a_graph_is_refused_with_the_reason():
    class Loops(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            while x.sum() > 0:
                x = self.layer(x) - 1
            return x

    batches = [(torch.randn(4, 3), torch.randint(3, (4,)))]
    with pytest.raises(ValueError, match="can be analysed"):
        skeletal.prune(Loops(), batches, density=0.5, method="snip", pattern="channels")
    with pytest.raises(ValueError, match="needs a batch"):
        skeletal.prune(convnet(), density=0.5, method="random", pattern="channels")
