"""The step that is recorded on a GPU, on a CPU without a recording: the eager loop's bits, whatever happens."""

import signal
from dataclasses import replace

import pytest
import torch
from torch import nn

from skeletal.core.errors import NonFiniteError
from skeletal.harness.console.interrupt import Interrupted
from skeletal.harness.data.memory import Levels, made, plan_epoch
from skeletal.harness.store.folders import RunFolder
from skeletal.harness.training import checkpoint
from skeletal.harness.training.static_step import prepare_momentum
from tests.harness.training.blobs import folder, same, timeless
from tests.harness.training.recorded import BATCH, DATA, EXAMPLES, TRAINING, Uncaptured, mask_of, network, run, static

__all__ = ["static"]


def test_an_epochs_plan_is_made_of_the_same_batches():
    split = DATA.train
    plan = plan_epoch(split, BATCH, seed=3, epoch=2)
    levels = Levels.of(split.spec, torch.device("cpu"))
    batches = list(split.batches(BATCH, train=True, seed=3, epoch=2))
    assert plan.members.shape == (5, BATCH) and len(batches) == 5
    for k, (images, labels) in enumerate(batches):
        size = len(labels)
        draws = type(plan.draws)(*(rows[k, :size] for rows in plan.draws))
        again, same_labels = made(split.part, plan.members[k, :size], draws, split.spec.padding, levels)
        assert torch.equal(images, again) and torch.equal(labels, same_labels)


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"bf16": True},
        {"channels_last": True},
        {"momentum": 0.0},
        {"test_every": 2},
        {"batch_size": 50},
        {"decay": "one-cycle"},
    ],
    ids=str,
)
def test_a_run_is_the_eager_one_to_the_bit(tmp_path, static, changed):
    training = replace(TRAINING, **changed)
    eager, place = folder(tmp_path, "eager"), folder(tmp_path, "static")
    expected = run(training, folder=eager)
    recorder = static()
    found = run(training, folder=place)
    assert recorder.recorded == (1 if EXAMPLES % training.batch_size == 0 else 2)
    assert same(dict(expected.state_dict()), dict(found.state_dict()))
    rows = timeless(place.metrics())
    assert [row.pop("step") for row in rows] == ["graph"] * 3
    assert rows == timeless(eager.metrics())
    a, b = checkpoint.load(eager.path), checkpoint.load(place.path)
    for part in ("settings", "model", "optimizer", "scheduler", "rng", "tally"):
        assert same(a[part], b[part]), part


def test_pruned_weights_and_their_momentum_are_zero(tmp_path, static):
    static()
    model = run(folder=folder(tmp_path))
    mask = mask_of(network())
    mask.check(model)
    moments = [
        entry["momentum_buffer"] for entry in checkpoint.load(folder(tmp_path).path)["optimizer"]["state"].values()
    ]
    for (name, weight), momentum in zip(model.named_parameters(), moments, strict=True):
        assert momentum.any()
        if name in mask:
            assert not momentum[~mask[name]].any() and not weight[~mask[name]].any()


class StoppingAt(Uncaptured):
    """Interrupts the run at a step, counted from the first one that trains."""

    def __init__(self, at):
        super().__init__()
        self.left = at + 14  # two steps and one of the last batch are compared, ten are timed

    def record(self, step):
        def stopping():
            self.left -= 1
            if self.left == 0:
                signal.raise_signal(signal.SIGINT)
            step()

        return stopping


@pytest.mark.parametrize("at", [0, 3, 4, 7, 13])
def test_a_stopped_run_goes_on_to_the_same_bits_by_either_step(tmp_path, static, monkeypatch, at):
    expected = run(folder=folder(tmp_path, "whole"))
    for then in ("static", "eager"):
        place = folder(tmp_path, then)
        static(StoppingAt(at))
        with pytest.raises(Interrupted):
            run(folder=place)
        saved = checkpoint.load(place.path)
        assert (saved["epoch"], saved["batch"]) == divmod(at + 1, 5)
        static() if then == "static" else monkeypatch.undo()
        torch.manual_seed(99)
        assert same(dict(run(folder=place).state_dict()), dict(expected.state_dict()))
        assert len(place.metrics()) == 3


def test_a_run_that_began_eagerly_goes_on_by_the_static_step(tmp_path, static):
    expected = run()
    place = folder(tmp_path)

    class Stops(nn.Identity):
        calls = 0

        def forward(self, x):
            Stops.calls += self.training
            if Stops.calls == 8:
                signal.raise_signal(signal.SIGINT)
            return x

    model = network()
    model.append(Stops())
    with pytest.raises(Interrupted):
        run(model=model, folder=place)
    static()
    assert same(dict(run(folder=place).state_dict()), dict(expected.state_dict()))


def test_a_loss_that_is_nan_is_named_by_its_step(tmp_path, static):
    static()
    before_training = 25  # six warm up, six compare a full batch, three the last one, ten are timed

    class Explodes(nn.Module):
        calls = 0

        def forward(self, x):
            Explodes.calls += self.training
            return x * torch.nan if Explodes.calls == before_training + 7 else x

    model = network()
    model.append(Explodes())
    with pytest.raises(NonFiniteError, match="the training loss is nan in epoch 2, step 2"):
        run(model=model, folder=folder(tmp_path))


def test_how_a_step_is_taken_is_no_part_of_a_runs_identity(tmp_path):
    place = RunFolder.open(tmp_path, "run", {})
    run(replace(TRAINING, epochs=2), folder=place)
    again = replace(TRAINING, epochs=2, graph="no", compile="yes")
    assert run(again, folder=place) is not None


def test_momentum_gets_the_memory_order_of_its_weight_once():
    weight = nn.Parameter(torch.randn(4, 3, 2, 2).contiguous(memory_format=torch.channels_last))
    optimizer = torch.optim.SGD([weight], 0.1, momentum=0.9)
    momentum = torch.randn(4, 3, 2, 2)
    optimizer.state[weight]["momentum_buffer"] = momentum
    prepare_momentum(optimizer)
    found = optimizer.state[weight]["momentum_buffer"]
    assert found.stride() == weight.stride() and torch.equal(found, momentum)
    prepare_momentum(optimizer)
    assert optimizer.state[weight]["momentum_buffer"] is found  # at which recordings look
