"""An error on one rank of two stops both at once, each with a message that says whose it was."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import skeletal
from skeletal.harness import data as data_sets
from skeletal.harness.data.placing import shared
from skeletal.harness.training import checkpoint
from tests.harness.training.digits import TRAINING, data, net, trained
from tests.ranks import in_ranks, outcome


def nan_on_rank_1(rank):
    source = data()
    if rank == 1:
        source.train.part.images.zero_()
    model = net()
    model.register_forward_hook(lambda _, x, y: y * torch.nan if rank == 1 else y)
    trained(model=model, source=source)


def forward_fails_on_rank_1_in_the_last_step_of_an_epoch(rank):
    calls = []

    def fail(*_):
        calls.append(1)
        if rank == 1 and len(calls) == 4:
            raise ValueError("mine")

    model = net()
    model.register_forward_pre_hook(fail)
    trained(model=model, training=replace(TRAINING, epochs=1))


def evaluation_fails_on_rank_0(rank):
    def fail(module, *_):
        if rank == 0 and not module.training:
            raise ValueError("in evaluation")

    model = net()
    model.register_forward_pre_hook(fail)
    trained(model=model)


def disk_is_full_on_rank_0(rank):
    def full(*_):
        raise OSError(28, "No space left on device")

    before, checkpoint.save = checkpoint.save, full
    try:
        trained(folder=FOLDER + "/full")
    finally:
        checkpoint.save = before


def other_weights_on_rank_1(rank):
    model = net()
    if rank == 1:
        nn.init.ones_(model[0].bias)
    trained(model=model)


def bad_density_on_rank_1(rank):
    skeletal.prune(net(), [(torch.randn(4, 1, 8, 8), torch.arange(4))], density=2.0 if rank == 1 else 0.5)


def corrupt_label_on_rank_1(rank):
    source = data()
    if rank == 1:
        source.train.part.labels.fill_(12)
    trained(source=source)


FAILURES = [
    nan_on_rank_1,
    forward_fails_on_rank_1_in_the_last_step_of_an_epoch,
    evaluation_fails_on_rank_0,
    disk_is_full_on_rank_0,
    other_weights_on_rank_1,
    bad_density_on_rank_1,
    corrupt_label_on_rank_1,
]
FOLDER = ""


def work(rank, folder):
    global FOLDER
    FOLDER = folder
    found = {function.__name__: outcome(function, rank) for function in FAILURES}
    found["sync"] = outcome(lambda: trained(training=replace(TRAINING, sync_bn=True)))
    found["own split"] = outcome(shared, [1, 2])
    found["small batch"] = outcome(data_sets.Stream, shared(data().train), 1, 0)
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return in_ranks(work, tmp_path_factory.mktemp("ranks"))


# What ranks 0 and 1 raise, and what the messages say.
RAISED = {
    "nan_on_rank_1": 2 * [("NonFiniteError", "loss is nan in epoch 1, step 1")],
    "forward_fails_on_rank_1_in_the_last_step_of_an_epoch": [
        ("PeerError", "rank 1 has failed: ValueError: mine"),
        ("ValueError", "mine"),
    ],
    "evaluation_fails_on_rank_0": [("ValueError", "in evaluation"), ("PeerError", "rank 0 has failed: ValueError")],
    "disk_is_full_on_rank_0": [("OSError", "No space left"), ("PeerError", "rank 0 has failed: OSError")],
    "other_weights_on_rank_1": 2 * [("ValueError", "ranks 0 and 1 differ in 0.bias: train the same model")],
    "bad_density_on_rank_1": [("PeerError", "rank 1 has failed: ValueError: density is 2.0"), ("ValueError", "2.0")],
    "corrupt_label_on_rank_1": [
        ("PeerError", "rank 1 has failed: ValueError: label 12 is not in 0..9"),
        ("ValueError", "label 12 is not in 0..9"),
    ],
    "sync": 2 * [("ValueError", "--sync-bn needs GPUs, not cpu")],
    "own split": 2 * [("TypeError", "a list cannot be divided over 2 processes")],
    "small batch": 2 * [("ValueError", "a batch of 1 examples cannot be divided over 2 processes")],
}


@pytest.mark.parametrize("name", RAISED)
def test_an_error_on_one_rank_stops_all_at_once(found, name):
    for rank, (kind, message) in enumerate(RAISED[name]):
        raised, told, seconds = found[rank][name]
        assert raised == kind, told
        assert message in told
        assert seconds < 60  # not the time-out of a rank left waiting
