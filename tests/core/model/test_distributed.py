"""Two gloo processes, each with half of every batch, against one process with whole batches. In float64."""

import copy
import os
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch import nn

import skeletal
from skeletal.core.model import distributed
from skeletal.core.model.tensors import flatten
from tests.cases import images, mlp
from tests.ranks import spawned

METHODS = {
    "snip": {"method": "snip", "batches_per_step": 2},
    "force": {"method": "force", "steps": 4},
    "force-floor": {"method": "force-floor", "steps": 3},
    "force-regrow": {"method": "force-regrow", "steps": 3, "batches_per_step": 2},
    "grasp": {"method": "grasp", "batches_per_step": 2},
    "grasp-it": {"method": "grasp-it", "steps": 3},
    "synflow": {"method": "synflow", "steps": 3},
    "px": {"method": "px", "steps": 3, "batches_per_step": 2},
    "ntk-sap": {"method": "ntk-sap", "steps": 3},
    "random": {"method": "random"},
    "2:4": {"method": "force", "steps": 3, "pattern": "2:4"},
    "channels": {"method": "snip", "pattern": "channels"},
    "absolute": {"method": "snip", "average": "absolute", "batches_per_step": 2},
}


def whole():
    return [(x.double(), y) for x, y in images(4)]


def halves(rank):
    return [(x[6 * rank : 6 * rank + 6], y[6 * rank : 6 * rank + 6]) for x, y in whole()]


def prune(rank, seen=None, model=None, batches=None, **settings):
    return skeletal.prune(
        model or mlp().double(),
        batches or halves(rank),
        density=0.1,
        on_step=None if seen is None else lambda step: seen.append(step.loss),
        **settings,
    )


def differing_weights(rank):
    prune(rank, model=mlp(seed=rank).double())


def differing_biases_only(rank):
    model = mlp().double()
    nn.init.constant_(model[3].bias, rank)
    prune(rank, model=model)


def differing_seeds(rank):
    prune(rank, method="random", seed=rank)


def differing_precisions(rank):
    prune(rank, precision=("float32", "bfloat16")[rank])


def differing_patterns(rank):
    prune(rank, method="snip", pattern=("2:4", "fan-in")[rank])


def nan_on_rank_1_at_step_2(rank):
    batches = halves(rank)
    if rank == 1:
        batches[1][0][0, 0, 0, 0] = float("nan")
    prune(rank, batches=batches, steps=4)


def nan_in_second_pass_on_rank_0(rank):
    """A derivative that overflows only when it is taken twice: the ranks fail at GRASP's second meeting."""

    def loss(outputs, targets):
        value = nn.functional.cross_entropy(outputs, targets)
        return value + (outputs.sum().mul(0).abs().pow(1.5) if rank == 0 else 0)

    prune(rank, method="grasp", loss=loss)


def batches_run_out_on_rank_1(rank):
    batches = halves(rank)
    prune(rank, batches=iter(batches[:2]) if rank == 1 else batches, steps=4)


def nan_weights_on_rank_1(rank):
    model = mlp().double()
    if rank == 1:
        nn.init.constant_(model[3].weight, float("nan"))
    prune(rank, model=model)


def callback_fails_on_rank_0_at_the_last_step(rank):
    def callback(step):
        if rank == 0 and step.step == step.steps:
            raise KeyError("mine")

    skeletal.prune(mlp().double(), halves(rank), density=0.1, steps=3, on_step=callback)


def score_that_is_not_the_same_on_all_ranks(rank):
    prune(rank, score=lambda at: {n: g.abs() + rank * torch.rand_like(g) for n, g in at.gradient.items()}, steps=2)


def collapse(rank):
    model = mlp().double()
    nn.init.zeros_(model[3].weight)
    prune(rank, model=model, method="force", steps=2, on_collapse="raise", loss=lambda out, y: out[:, 0].square().sum())


FAILURES = [
    differing_weights,
    differing_biases_only,
    differing_seeds,
    differing_precisions,
    differing_patterns,
    nan_on_rank_1_at_step_2,
    nan_in_second_pass_on_rank_0,
    batches_run_out_on_rank_1,
    nan_weights_on_rank_1,
    callback_fails_on_rank_0_at_the_last_step,
    score_that_is_not_the_same_on_all_ranks,
    collapse,
]


def lose_rank_1(rank):
    if rank == 1:
        os._exit(0)
    prune(rank)


def outcome(function, *arguments):
    start = time.monotonic()
    try:
        function(*arguments)
        raised = ("nothing", "")
    except Exception as error:
        raised = (type(error).__name__, str(error))
    return *raised, time.monotonic() - start


def work(rank, folder):
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    found = {}
    for function in FAILURES:  # first: what comes after shows that the ranks are still in step
        found[function.__name__] = outcome(function, rank)
    for name, settings in METHODS.items():
        model = mlp().double()
        if name == "force":
            model = nn.parallel.DistributedDataParallel(model)
        losses = []
        mask = prune(rank, losses, model, **settings)
        found[name] = dict(mask), mask.metadata, losses
    tensors = {
        "a": torch.full((3, 2), 1.0 + rank),
        "b": torch.full((4,), 10.0 * rank, dtype=torch.float64),
        "c": torch.arange(5.0) * (1 - rank),
        "d": torch.tensor(float(rank)),
    }
    distributed.BUCKET = 7
    distributed.average_over_ranks(tensors)
    found["means"] = tensors
    torch.save(found, f"{folder}/{rank}")
    lost = outcome(lose_rank_1, rank)
    torch.save(found | {"lost": lost}, f"{folder}/{rank}")
    os._exit(0)  # a group that has lost a rank may abort its process while it is taken down


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What two ranks have found, each, in all of the cases above; one pair of processes for all."""
    folder = tmp_path_factory.mktemp("ranks")
    spawned(work, (str(folder),), 2)
    return [torch.load(folder / str(rank), weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("name", METHODS)
def test_two_ranks_find_the_mask_of_one_process(found, name):
    (mask, metadata, losses), other = found[0][name], found[1][name]
    assert (metadata, losses) == other[1:]
    assert metadata["ranks"] == 2
    batches = whole()
    settings = dict(METHODS[name])
    if name == "absolute":  # the absolute value of each half counts
        batches = [half for pair in zip(halves(0), halves(1), strict=True) for half in pair]
        settings["batches_per_step"] = 4
    seen = []
    single = prune(0, seen, batches=batches, **settings)
    assert single == mask
    assert single == other[0]
    assert losses == (pytest.approx(seen) if losses[0] is not None else seen)
    assert single.metadata["ranks"] == 1
    assert metadata["connected"] is single.metadata["connected"] is True


# What each rank raises, and what the message says.
RAISED = {
    "differing_weights": 2 * [("ValueError", "ranks 0 and 1 differ in 1.weight: create the model from the same seed")],
    "differing_biases_only": 2 * [("ValueError", "differ in 3.bias")],
    "differing_seeds": 2 * [("ValueError", "differ in seed: call prune with the same arguments")],
    "differing_precisions": 2 * [("ValueError", "differ in precision: call prune with the same arguments")],
    "differing_patterns": 2 * [("ValueError", "differ in pattern: call prune with the same arguments")],
    "nan_on_rank_1_at_step_2": [
        ("PeerError", "rank 1 has failed: NonFiniteError"),
        ("NonFiniteError", "the loss is nan on batch 2"),
    ],
    "nan_in_second_pass_on_rank_0": [
        ("NonFiniteError", "Hessian-gradient product"),
        ("PeerError", "rank 0 has failed: NonFiniteError"),
    ],
    "batches_run_out_on_rank_1": [
        ("PeerError", "rank 1 has failed: ValueError: batches ran out after 2"),
        ("ValueError", "batches ran out after 2"),
    ],
    "nan_weights_on_rank_1": 2 * [("ValueError", "differ in 3.weight")],
    "callback_fails_on_rank_0_at_the_last_step": [
        ("KeyError", "mine"),
        ("PeerError", "rank 0 has failed: KeyError"),
    ],
    "score_that_is_not_the_same_on_all_ranks": 2 * [("ValueError", "weight: a score of your own")],
    "collapse": 2 * [("CollapsedError", "collapsed at step 1 of 2")],
}


@pytest.mark.parametrize("name", RAISED)
def test_an_error_on_one_rank_stops_all_at_once(found, name):
    for rank, expected in enumerate(RAISED[name]):
        kind, message, seconds = found[rank][name]
        assert kind == expected[0], message
        assert expected[1] in message
        assert seconds < 50  # not the time-out of a rank left waiting


def test_a_rank_that_dies_leaves_nobody_waiting(found):
    kind, message, seconds = found[0]["lost"]
    assert kind == "PeerError", message
    assert "lost touch" in message
    assert seconds < 50  # not the time-out of a rank left waiting


def test_means_of_mixed_types_in_small_buckets(found):
    for rank in (0, 1):
        means = found[rank]["means"]
        assert torch.equal(means["a"], torch.full((3, 2), 1.5))
        assert torch.equal(means["b"], torch.full((4,), 5.0, dtype=torch.float64))
        assert torch.equal(means["c"], torch.arange(5.0) / 2)
        assert torch.equal(means["d"], torch.tensor(0.5))


def test_buckets_hold_what_fits():
    tensors = [torch.zeros(n, dtype=t) for n, t in ((4, torch.float32), (2, torch.float64), (3, torch.float32))]
    assert [len(bucket) for bucket in distributed._buckets(tensors)] == [2, 1]
    many = [torch.zeros(distributed.BUCKET // 2 + 1).to("meta") for _ in range(5)]
    assert [len(bucket) for bucket in distributed._buckets(many)] == [2, 2, 1]


# average="absolute", in one process


@pytest.mark.parametrize(("method", "steps"), [("snip", None), ("grasp-it", 1)])
def test_absolute_averages_each_batchs_absolute_saliencies(method, steps):
    model, batches = mlp().double(), whole()[:3]
    seen = []
    settings = dict(density=0.1, method=method, steps=steps, batches_per_step=3)
    mask = skeletal.prune(model, batches, average="absolute", on_step=seen.append, **settings)
    scores = {name: torch.zeros_like(keep, dtype=torch.float64) for name, keep in mask.items()}
    for x, y in batches:
        copied = copy.deepcopy(model)
        nn.functional.cross_entropy(copied(x), y).backward()
        for name in scores:
            weight = copied.get_parameter(name)
            scores[name] += (weight * weight.grad if method == "snip" else weight.grad).detach().abs() / 3
    for name, score in seen[0].scores.items():
        torch.testing.assert_close(score, scores[name])
    expected = torch.zeros(mask.total, dtype=torch.bool)
    expected[flatten(scores).argsort(descending=True)[: mask.kept]] = True
    assert torch.equal(flatten(dict(mask)), expected)
    signed = skeletal.prune(model, batches, **settings)
    assert (mask.metadata["average"], signed.metadata["average"]) == ("absolute", "signed")
    assert mask != signed


def test_with_one_batch_a_step_absolute_and_signed_are_the_same():
    masks = [skeletal.prune(mlp(), images(), density=0.1, steps=5, average=a) for a in ("absolute", "signed")]
    assert masks[0] == masks[1]


@pytest.mark.parametrize("method", ["grasp", "grasp-iterative"])
def test_absolute_is_refused_where_the_sign_decides(method):
    with pytest.raises(ValueError, match="GRASP's criterion is signed"):
        skeletal.prune(mlp(), images(), density=0.1, method=method, average="absolute")


def test_unknown_average_is_refused_before_any_batch_is_taken():
    batches = iter(images())
    with pytest.raises(ValueError, match=r"unknown average 'squared'.*There are signed, absolute"):
        skeletal.prune(mlp(), batches, density=0.1, average="squared")
    assert len(list(batches)) == 3
