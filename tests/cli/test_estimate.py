import pytest

from skeletal.cli.estimate import _size
from skeletal.core.progress import duration
from skeletal.harness.runs import estimate as estimating
from skeletal.harness.runs.estimate import Estimate

FOUND = Estimate(
    data_seconds=1.5, prune_seconds=100.0, train_seconds=7300.0, step_seconds=0.0512, steps_per_epoch=11,
    memory=3 * 2**30, disk=5 * 2**20, device="cpu", engine="auto: sparse", assumed=("a", "b"),
)  # fmt: skip


@pytest.fixture
def asked(monkeypatch):
    settings = []
    monkeypatch.setattr(estimating, "estimate", lambda *records: settings.extend(records) or FOUND)
    return settings


def test_it_takes_the_options_of_run_and_says_what_it_assumed(cli, asked):
    done = cli("estimate", "--density", "0.02", "--preset", "cifar10", "--model", "vgg19-cifar")
    assert done.status == 0
    setup, pruning, training = asked
    assert (setup.model, pruning.density, pruning.steps, training.epochs) == ("vgg19-cifar", 0.02, 300, 350)
    assert done.out.splitlines() == [
        "vgg19-cifar on digits, force, on cpu, engine auto: sparse",
        "  data      1.5 s",
        "  pruning   1 min 40 s  (300 steps of 1 batches)",
        "  training  2 h 1 min  (350 epochs of 11 steps of 0.0512 s)",
        "  memory    3.00 GiB at the peak",
        "  disk      5.0 MiB for the run folder",
        "assumed: a; b",
    ]


def test_the_dense_network_takes_no_pruning_steps(cli, asked):
    shown = cli("estimate", "--method", "dense")
    assert shown.status == 0 and "steps of 1 batches" not in shown.out and "  pruning   1 min 40 s\n" in shown.out


def test_json(cli, asked):
    assert cli("estimate", "--json").json["prune_seconds"] == 100.0


def test_a_mistake_is_named(cli):
    assert "unknown method 'forc'" in cli("estimate", "--method", "forc").err


@pytest.mark.parametrize(
    "seconds, text", [(0.04, "0.0 s"), (99.4, "99.4 s"), (3599.6, "1 h 0 min"), (86400 * 3.25, "3.2 days")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_sizes():
    assert (_size(2**20), _size(2**31)) == ("1.0 MiB", "2.00 GiB")
