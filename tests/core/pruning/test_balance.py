"""NPB's layers against every mask there is, and against an integer program; its networks against counted paths."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

import skeletal
from skeletal.core.pruning.criteria import balance
from skeletal.core.pruning.criteria.balance import best_counts, spread
from tests.cases import images


def value(kernels, paths, budget, cells, outputs):
    """α f_n + (1-α) f_p + β R of a layer, as the paper writes them, for kernels (..., groups, inputs, outputs)."""
    arriving = paths.view(kernels.shape[-3], -1, 1)
    inputs = (arriving * kernels.sum(-1, keepdim=True)).clamp(max=1).sum((-3, -2, -1))
    reached = (arriving * kernels).sum(-2).clamp(max=1).sum((-2, -1))
    most = balance._most_paths(paths, outputs // kernels.shape[-3] * cells, budget)
    empty = (kernels - 1).clamp(max=0).sum((-3, -2, -1))
    nodes = (inputs + reached) / (len(paths) + outputs)
    rest = (arriving * kernels).sum((-3, -2, -1)) / most
    return balance.NODES * nodes + (1 - balance.NODES) * rest + balance.KERNELS * (budget + empty) / budget


def chosen(paths, outputs, cells, groups, budget):
    counts = best_counts(paths, outputs, cells, groups, budget)
    kernels = spread(counts, paths, outputs, groups, torch.Generator().manual_seed(0))
    assert kernels.sum() == counts.sum() == budget and kernels.min() >= 0 and kernels.max() <= cells
    assert kernels.sum(2).flatten().equal(counts)
    return kernels.double()


@pytest.mark.parametrize(
    ("inputs", "outputs", "cells", "groups"), [(2, 3, 2, 1), (3, 2, 2, 1), (3, 4, 1, 1), (4, 4, 2, 2), (4, 2, 3, 2)]
)
@pytest.mark.parametrize("alpha", [0.01, 0.6])
def test_no_mask_of_a_layer_is_better(inputs, outputs, cells, groups, alpha, monkeypatch):
    monkeypatch.setattr(balance, "NODES", alpha)
    shape = groups, inputs // groups, outputs // groups
    every = torch.tensor(list(itertools.product(range(cells + 1), repeat=inputs * outputs // groups)))
    every = every.view(-1, *shape).double()
    generator = torch.Generator().manual_seed(1)
    for budget in (1, outputs - 1, outputs + 1, inputs * outputs // groups, inputs * outputs // groups * cells - 1):
        paths = torch.randint(1, 7, (inputs,), generator=generator).double()
        found = value(chosen(paths, outputs, cells, groups, budget), paths, budget, cells, outputs)
        best = value(every[every.sum((1, 2, 3)) == budget], paths, budget, cells, outputs).max()
        assert found.item() == pytest.approx(best.item(), abs=1e-12)


def test_it_finds_what_a_solver_finds():
    """The integer program of the paper: kernels and, for each minimum, a binary that is 0 where the sum is 0."""
    optimize = pytest.importorskip("scipy.optimize")
    inputs, outputs, cells, budget = 7, 6, 4, 40
    paths = torch.tensor([9.0, 9.0, 4.0, 3.0, 2.0, 1.0, 1.0]).double()
    found = value(chosen(paths, outputs, cells, 1, budget), paths, budget, cells, outputs)
    size = inputs * outputs
    most = float(balance._most_paths(paths, outputs * cells, budget))
    gains = np.concatenate(
        [
            np.repeat((1 - balance.NODES) * paths.numpy() / most, outputs),
            np.full(inputs + outputs, balance.NODES / (inputs + outputs)),
            np.full(size, balance.KERNELS / budget),
        ]
    )
    kernels = np.eye(size)
    rows, columns = (np.zeros((count, size)) for count in (inputs, outputs))
    for i, j in itertools.product(range(inputs), range(outputs)):
        rows[i, i * outputs + j] = columns[j, i * outputs + j] = 1
    sums = np.concatenate([rows, columns, kernels])
    at_least = np.concatenate([sums, -np.eye(len(sums))], 1)  # each binary is at most its sum
    total = np.concatenate([np.ones(size), np.zeros(len(sums))])[None]
    solved = optimize.milp(
        -gains,
        integrality=np.ones(len(gains)),
        bounds=optimize.Bounds(0, np.concatenate([np.full(size, cells), np.ones(len(sums))])),
        constraints=[
            optimize.LinearConstraint(at_least, lb=0),
            optimize.LinearConstraint(total, lb=budget, ub=budget),
        ],
    )
    constant = balance.KERNELS * (budget - size) / budget
    assert solved.success and found.item() == pytest.approx(-solved.fun + constant, abs=1e-9)


def test_channels_that_no_path_reaches_come_last():
    paths = torch.tensor([0.0, 2.0, 0.0, 1.0]).double()
    assert not best_counts(paths, 3, 2, 1, 12)[[0, 2]].any()
    assert best_counts(paths, 3, 2, 1, 14)[[1, 3]].tolist() == [6, 6]


class Layers(nn.Module):
    """Three layers and a skip connection; norm and activation between."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.second, self.last = nn.Conv2d(6, 6, 3, padding=1, groups=2), nn.Linear(6, 4)

    def forward(self, x):
        x = torch.relu(self.norm(self.first(x)))
        return self.last((torch.relu(self.second(x)) + x).mean((2, 3)))


def test_a_layer_sees_the_paths_that_the_masks_before_it_let_through(monkeypatch):
    model, seen, real = Layers(), [], balance.best_counts
    monkeypatch.setattr(balance, "best_counts", lambda paths, *rest: seen.append(paths) or real(paths, *rest))
    mask = skeletal.prune(model, images(1, size=4), density=0.25, method="npb")
    quotas = skeletal.prune(model, density=0.25, method="random-erk")
    assert {name: int(keep.sum()) for name, keep in mask.items()} == {n: int(k.sum()) for n, k in quotas.items()}
    plain = Layers().double()
    with torch.no_grad():
        for name, value in plain.named_parameters():
            value.copy_(mask[name].double() if name in mask else torch.full_like(value, float("bias" not in name)))
        x = torch.ones(1, 3, 4, 4).double()
        first = torch.relu(plain.first(x))
        counts = [x.sum((0, 2, 3)), first.sum((0, 2, 3)), (torch.relu(plain.second(first)) + first).mean((0, 2, 3))]
    for found, expected in zip(seen, counts, strict=True):
        torch.testing.assert_close(found / found.sum(), expected / expected.sum(), rtol=1e-4, atol=0)  # norm's epsilon


def test_networks_are_exact_connected_and_do_not_depend_on_weights():
    masks = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        masks.append(skeletal.prune(Layers(), images(1, seed=seed), density=0.1, method="npb", seed=3))
    assert masks[0] == masks[1] and masks[0].kept == round(0.1 * masks[0].total) and masks[0].metadata["connected"]
    assert skeletal.prune(Layers(), images(1), density=0.1, method="npb", seed=4) != masks[0]
