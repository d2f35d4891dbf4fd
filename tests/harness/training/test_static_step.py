"""The step that is recorded on a GPU, on a CPU without a recording: the eager loop's bits, whatever happens."""

import signal
from dataclasses import replace

import pytest
import torch
from torch import nn

import skeletal
from skeletal.core.errors import NonFiniteError
from skeletal.harness import data as data_sets
from skeletal.harness.config import Training
from skeletal.harness.console.interrupt import Interrupted
from skeletal.harness.data.memory import Levels, made, plan_epoch
from skeletal.harness.store.folders import RunFolder
from skeletal.harness.training import checkpoint, choose_step
from skeletal.harness.training.train import train
from tests.cases import random_mask
from tests.harness.training.test_train import folder, same, timeless

EXAMPLES, BATCH = 150, 32  # five batches, the last of 22
TRAINING = Training(
    epochs=3, batch_size=BATCH, lr=0.05, momentum=0.9, weight_decay=5e-4, milestones=(1 / 3, 2 / 3), engine="dense"
)


class Uncaptured:
    """In place of a CUDA graph: what was to be recorded, called again."""

    def __init__(self):
        self.recorded = 0

    def record(self, step):
        self.recorded += 1
        return step

    def synchronize(self):
        pass


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


def digits():
    whole = data_sets.load("digits")
    first = lambda split, count: replace(split, members=split.members[:count])  # noqa: E731
    return replace(
        whole, train=first(whole.train, EXAMPLES), validation=first(whole.validation, 40), test=first(whole.test, 50)
    )


DATA = digits()


def network():
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.3), nn.Linear(32, 10),
        )  # fmt: skip


def mask_of(model):
    return skeletal.Mask(random_mask(model, 0.3))


@pytest.fixture
def static(monkeypatch):
    """Let runs take the static step, on this recorder or another."""

    def use(recorder=None):
        recorder = recorder or Uncaptured()
        monkeypatch.setattr(choose_step, "recorder_for", lambda device: recorder)
        return recorder

    return use


def run(training=TRAINING, model=None, data=DATA, **options):
    model = model or network()
    train(model, data, training, mask=mask_of(network()), device="cpu", progress=False, **options)
    return model


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


class Stale(Uncaptured):
    """The first batch again and again, as with a counter that the recording has as a constant."""

    def record(self, step):
        static = step.__defaults__ and step.__closure__

        def again():
            (owner,) = (cell.cell_contents for cell in static if hasattr(cell.cell_contents, "seek"))
            position = owner._position.clone()
            owner.seek(0)
            step()
            owner.table[position] = owner.table[:1].clone()
            owner._position.copy_(position + 1)

        return again


class Twice(Uncaptured):
    """Moves the weights twice."""

    def record(self, step):
        def twice():
            step()
            step()

        return twice


class Never(Uncaptured):
    """Does nothing."""

    def record(self, step):
        return lambda: None


class Forgetful(Uncaptured):
    """Leaves no scores."""

    def record(self, step):
        (owner,) = (cell.cell_contents for cell in step.__closure__ if hasattr(cell.cell_contents, "seek"))

        def forgetting():
            step()
            owner.table.zero_()

        return forgetting


class WrongRate(Uncaptured):
    """Steps by another learning rate."""

    def record(self, step):
        (owner,) = (cell.cell_contents for cell in step.__closure__ if hasattr(cell.cell_contents, "seek"))

        def faster():
            owner._rate.mul_(2)
            step()
            owner._rate.div_(2)

        return faster


class Refuses(Uncaptured):
    """As CUDA does where a network asks for a value."""

    def record(self, step):
        step()  # half-way through: weights have moved
        raise RuntimeError("operation not permitted when stream is capturing\nand much more")


@pytest.mark.parametrize(
    ("recorder", "message"),
    [
        (Stale, "differs from eager ones .*step 2"),
        (Twice, "differs from eager ones .*step 1"),
        (Never, "differs from eager ones .*step 1"),
        (Forgetful, "differs from eager ones .*its loss is 0"),
        (WrongRate, "differs from eager ones .*step 1"),
        (Refuses, "cannot be captured .*stream is capturing and much more"),
    ],
)
def test_a_recording_that_is_wrong_is_not_trained_by(tmp_path, static, recorder, message):
    expected = run()
    static(recorder())
    place = folder(tmp_path)
    with pytest.warns(UserWarning, match=message):
        model = run(folder=place)
    assert same(dict(model.state_dict()), dict(expected.state_dict()))
    row = place.metrics()[0]
    assert "step" not in row  # on a CPU there is no choice to tell of


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


def test_the_compiled_network_is_taken_where_it_pays(tmp_path, static, monkeypatch):
    calls = []

    def compiled(model):
        calls.append(model)
        return lambda x: model(x)

    monkeypatch.setattr(choose_step, "compiled_by_torch", compiled)
    expected = run()
    for compile, about in (("yes", "graph, compiled"), ("no", "graph"), ("auto", "graph")):  # 3 epochs do not pay
        static()
        place = folder(tmp_path, compile)
        model = run(replace(TRAINING, compile=compile), folder=place)
        assert same(dict(model.state_dict()), dict(expected.state_dict()))
        assert [row["step"] for row in place.metrics()] == [about] * 3
    assert len(calls) == 1
    monkeypatch.setattr(choose_step, "COMPILE_SECONDS", 0.0)
    monkeypatch.setattr(choose_step.Recording, "seconds", lambda self, run: 1.0)
    place = folder(tmp_path, "as slow")
    run(folder=place)
    assert place.metrics()[0]["step"] == "graph (not compiled: 1000.00 ms a step, 1000.00 without)"


def test_without_a_recording_the_compiled_network_is_taken_where_it_is_asked_for(tmp_path, monkeypatch):
    calls = []

    def compiled(model):
        calls.append(model)
        return lambda x: model(x)

    monkeypatch.setattr(choose_step, "compiled_by_torch", compiled)
    expected = run()
    model = run(replace(TRAINING, compile="yes"), folder=folder(tmp_path))
    assert same(dict(model.state_dict()), dict(expected.state_dict())) and calls == [model]
    assert folder(tmp_path).metrics()[0]["step"] == "eager, compiled: no CUDA device"
    run(replace(TRAINING, compile="yes", engine="sparse"))
    assert calls == [model]


@pytest.mark.parametrize("kind", ["wrong", "raises"])
def test_a_compiler_that_fails_costs_no_more_than_its_time(tmp_path, static, monkeypatch, kind):
    def wrong(model):
        return lambda x: model(x).flip(1)

    def raises(model):
        raise RuntimeError("no C compiler found")

    monkeypatch.setattr(choose_step, "compiled_by_torch", {"wrong": wrong, "raises": raises}[kind])
    expected = run()
    static()
    with pytest.warns(UserWarning, match="captured without torch.compile"):
        model = run(replace(TRAINING, compile="yes"), folder=folder(tmp_path))
    assert same(dict(model.state_dict()), dict(expected.state_dict()))
    assert folder(tmp_path).metrics()[0]["step"].startswith("graph (not compiled: ")


def test_compiling_is_expected_to_pay_in_long_runs_of_large_networks():
    model = network()  # three layers: three seconds to compile
    assert choose_step.pays(TRAINING, model, step_seconds=0.01, steps_left=3001)
    assert not choose_step.pays(TRAINING, model, step_seconds=0.01, steps_left=2999)
    assert choose_step.pays(replace(TRAINING, compile="yes"), model, 0.0, 0)
    assert not choose_step.pays(replace(TRAINING, compile="no"), model, 1.0, 10**9)


def test_what_is_not_recorded_says_why(monkeypatch):
    recorder = Uncaptured()
    batching = choose_step.Batching(DATA.train, BATCH, 0, False, lambda: None)
    assert choose_step.why_eager(TRAINING, batching, recorder) is None
    assert choose_step.why_eager(TRAINING, batching, None) == "no CUDA device"
    assert choose_step.why_eager(replace(TRAINING, graph="no"), batching, recorder) == "--graph no"
    assert choose_step.why_eager(TRAINING, replace(batching, split=object()), recorder) == "images are not in memory"
    monkeypatch.setattr(choose_step, "ranks", lambda: 2)
    assert choose_step.why_eager(TRAINING, batching, recorder) == "2 processes"


def test_how_a_step_is_taken_is_no_part_of_a_runs_identity(tmp_path):
    place = RunFolder.open(tmp_path, "run", {})
    run(replace(TRAINING, epochs=2), folder=place)
    again = replace(TRAINING, epochs=2, graph="no", compile="yes")
    assert run(again, folder=place) is not None
