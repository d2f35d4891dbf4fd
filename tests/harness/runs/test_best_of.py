"""The best of several masks, against training each of them densely."""

import math
from dataclasses import replace
from itertools import islice
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import cross_entropy

import skeletal
from skeletal.core.seeds import seed_of
from skeletal.harness.config import Pruning, Setup, resolve
from skeletal.harness.ledger import Cost
from skeletal.harness.runs import best_of as comparing
from skeletal.harness.runs.finding import create_model, find_mask, load_data, pruning_batches
from skeletal.harness.runs.measure import measure

SETUP = Setup(device="cpu")


@pytest.fixture(scope="module")
def data():
    return load_data(SETUP)


def asked(method="force", density=0.01, best_of=3):
    return resolve(Pruning(method=method, density=density, steps=3, best_of=best_of, prune_batch_size=32), "quick")


def end_of_training(model, mask, batches, rate):
    """The mean loss of the last two of six steps, on a masked network."""
    mask.attach(model.train())
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    losses = []
    for inputs, targets in islice(batches, 6):
        optimizer.zero_grad()
        loss = cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses[-2:]) / 2


@pytest.mark.parametrize("density", [0.03, 0.2])  # trained by the sparse engine, and densely
def test_the_mask_that_learns_fastest_stays(data, density, monkeypatch):
    monkeypatch.setattr(comparing, "STEPS", 6)  # rounding grows step by step
    monkeypatch.setattr(comparing, "LAST", 2)
    pruning = asked(density=density)
    model = create_model(SETUP, data)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    chosen = find_mask(model, data, SETUP, pruning, progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    masks, losses = [], []
    for k in range(3):
        seed = seed_of("best of", 0, k) if k else 0
        batches = pruning_batches(data, SETUP, pruning, seed)
        mask = skeletal.prune(create_model(SETUP, data), batches, density=density, steps=3, seed=seed)
        masks.append(mask)
        compared_on = pruning_batches(data, SETUP, pruning, seed_of("best of", 0, "training"))
        losses.append(end_of_training(create_model(SETUP, data), mask, compared_on, 0.1))
    told = chosen.metadata["best_of"]
    assert told["rate"] == 0.1 and told["losses"] == pytest.approx(losses, rel=1e-3)
    assert told["chosen"] == min(range(3), key=told["losses"].__getitem__)
    assert chosen == masks[told["chosen"]] and chosen.metadata["seed"] == 0


def test_its_cost_is_that_of_all(data):
    one = Cost.read(find_mask(create_model(SETUP, data), data, SETUP, asked(best_of=1)).metadata["cost"])
    two = Cost.read(find_mask(create_model(SETUP, data), data, SETUP, asked(best_of=2)).metadata["cost"])
    trained = 2 * comparing.STEPS * 32
    assert two.examples == 2 * one.examples + trained and two.seconds > one.seconds


def test_where_no_network_learns_the_rate_is_lowered(data, monkeypatch):
    monkeypatch.setattr(comparing, "RATES", (1e12, 0.1))
    told = find_mask(create_model(SETUP, data), data, SETUP, asked(best_of=2), progress=False).metadata["best_of"]
    assert told["rate"] == 0.1 and all(map(math.isfinite, told["losses"]))


@pytest.mark.parametrize("method", ["magnitude", "synflow"])
def test_a_method_that_looks_at_no_data_is_refused(data, method):
    pruning = replace(asked(method, density=0.1), steps=1 if method == "magnitude" else 2)
    with pytest.raises(ValueError, match=f"{method} finds the same mask on other batches: .* ask for 1"):
        find_mask(create_model(SETUP, data), data, SETUP, pruning)


def test_what_looks_at_each_step_takes_one_mask(tmp_path):
    with pytest.raises(ValueError, match="leave --best-of out"):
        measure(SETUP, asked(best_of=2), root=tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(best_of=0), "best_of is 0; it has to be at least 1"),
        (dict(best_of=2, method="imp"), "imp finds no mask before training: leave --best-of out"),
        (dict(best_of=2, method="dense"), "dense finds no mask before training: leave --best-of out"),
    ],
)
def test_what_makes_no_sense_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        resolve(Pruning(**settings), "quick")


def comparing_only(monkeypatch, ends, **metadata):
    """The choice among masks whose first and last losses are given, by rate."""
    masks = [
        skeletal.Mask({"w": torch.tensor([k, True, not k], dtype=torch.bool)}, {"method": "force", **of_mask})
        for k, of_mask in enumerate(metadata.get("of_masks", [{}] * len(ends[0.1])))
    ]
    calls = []

    def early_losses(model, mask, batches, *, rate, meter):
        list(islice(batches, 1))
        calls.append(rate)
        return ends[rate][calls.count(rate) - 1]

    monkeypatch.setattr(comparing, "early_losses", early_losses)
    meter = SimpleNamespace(cost=Cost(), turn_to=lambda mask: None)
    batches = lambda: [(torch.zeros(10, 1), torch.arange(10))]  # noqa: E731
    return comparing.best_of(len(masks), masks.__getitem__, torch.nn.Linear(1, 1), batches, meter), calls


def test_a_rate_that_ruins_all_networks_is_not_learning(monkeypatch):
    """From 12 to the loss of a constant output is no step forward, wherever it began."""
    ends = {0.1: [(12.0, 2.25), (9.0, 2.3)], 0.01: [(12.0, 2.04), (9.0, 1.93)]}
    chosen, calls = comparing_only(monkeypatch, ends)
    assert chosen.metadata["best_of"] == {"losses": [2.04, 1.93], "rate": 0.01, "chosen": 1} and len(calls) == 4


def test_a_mask_without_a_path_stays_only_where_none_has_one(monkeypatch):
    ends = {0.1: [(2.3, 1.0), (2.3, 2.0)]}
    chosen, _ = comparing_only(monkeypatch, ends, of_masks=[{"connected": False}, {"connected": True}])
    assert chosen.metadata["best_of"]["chosen"] == 1
    chosen, _ = comparing_only(monkeypatch, ends, of_masks=[{"connected": False}, {"connected": False}])
    assert chosen.metadata["best_of"]["chosen"] == 0


def test_where_nothing_learns_it_warns(monkeypatch):
    ends = {0.1: [(2.3, math.inf)] * 2, 0.01: [(2.3, math.inf), (2.3, 2.29)], 0.001: [(2.3, 2.3)] * 2}
    with pytest.warns(UserWarning, match="no network of the 2 masks learns within 50 steps"):
        chosen, _ = comparing_only(monkeypatch, ends)
    told = chosen.metadata["best_of"]
    assert told == {"losses": [None, 2.29], "rate": 0.01, "chosen": 1}
