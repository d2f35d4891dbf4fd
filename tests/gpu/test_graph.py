"""The training step as a CUDA graph: what eager steps do, to rounding; else a warning, and eager steps."""

import signal
from dataclasses import replace

import pytest
import torch
from torch import nn

from skeletal.core.errors import NonFiniteError
from skeletal.harness.console.interrupt import Interrupted, Stop
from skeletal.harness.devices import own_stream
from skeletal.harness.training import checkpoint
from skeletal.harness.training.graph import GraphRecorder
from skeletal.harness.training.several import train_many
from skeletal.harness.training.static_step import StaticSteps
from skeletal.harness.training.task import Task
from skeletal.harness.training.train import TrainResult, train
from skeletal.harness.training.trainer import Trainer
from tests.gpu.waiting import waiting_is_an_error
from tests.harness.training.blobs import folder
from tests.harness.training.recorded import DATA, TRAINING, mask_of, network

GPU = torch.device("cuda", 0)
CLOSE = 0.02  # of what training has changed: ten steps make rounding of 1e-7 one of 1e-3 in single weights


@pytest.fixture(autouse=True)
def repeatable():
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, benchmark=False, allow_tf32=False):
        yield


def run(training=TRAINING, model=None, **options):
    model = model or network()
    train(model, DATA, training, mask=mask_of(network()), device="cuda", progress=False, **options)
    return model


def in_a_row(model):
    values = [value.double().flatten() for value in model.state_dict().values() if value.is_floating_point()]
    return torch.cat(values).cpu()


def close(one, other):
    found, expected, start = in_a_row(other), in_a_row(one), in_a_row(network())
    changed = torch.linalg.vector_norm(expected - start)
    assert torch.linalg.vector_norm(found - expected) <= CLOSE * changed


@pytest.mark.parametrize(
    "changed", [{}, {"channels_last": True}, {"momentum": 0.0}, {"batch_size": 50}, {"weight_decay": 0.0}], ids=str
)
def test_two_epochs_are_the_eager_ones_to_rounding(tmp_path, changed):
    training = replace(TRAINING, epochs=2, milestones=(0.5,), **changed)  # with dropout, and a short last batch
    eager, graph = folder(tmp_path, "eager"), folder(tmp_path, "graph")
    close(run(replace(training, graph="no"), folder=eager), run(training, folder=graph))
    assert [row["step"] for row in eager.metrics()] == ["eager: --graph no"] * 2
    assert [row["step"] for row in graph.metrics()] == ["graph"] * 2
    for one, other in zip(eager.metrics(), graph.metrics(), strict=True):
        assert one["lr"] == other["lr"]
        for name in ("train_loss", "val_loss"):
            assert other[name] == pytest.approx(one[name], rel=1e-3)


@pytest.mark.parametrize("changed", [{"bf16": True, "channels_last": True}, {"bf16": True}], ids=str)
def test_bf16_learns_as_eagerly(tmp_path, changed):
    training = replace(TRAINING, epochs=4, **changed)
    eager, graph = folder(tmp_path, "eager"), folder(tmp_path, "graph")
    run(replace(training, graph="no"), folder=eager)
    run(training, folder=graph)
    assert {row["step"] for row in graph.metrics()} == {"graph"}
    assert graph.metrics()[-1]["train_loss"] == pytest.approx(eager.metrics()[-1]["train_loss"], rel=0.1)


def test_pruned_weights_and_their_momentum_are_exactly_zero(tmp_path):
    mask = mask_of(network())
    model = run(folder=folder(tmp_path))
    mask.check(model)
    state = checkpoint.load(folder(tmp_path).path)["optimizer"]["state"]
    for (name, _), entry in zip(model.named_parameters(), state.values(), strict=True):
        assert entry["momentum_buffer"].any()
        if name in mask:
            assert not entry["momentum_buffer"][~mask[name]].any()


def test_recordings_draw_one_after_the_other_what_eager_steps_draw():
    """Also across recordings, of which every one has a state of its own."""
    drawn = {size: torch.zeros(size, device=GPU) for size in (7, 3000)}
    steps = {size: lambda to=to: to.copy_(torch.rand(len(to), device=GPU)) for size, to in drawn.items()}
    order = (7, 7, 3000, 7, 3000, 3000, 7)

    def sequence(take):
        torch.cuda.manual_seed(5)
        seen = []
        for size in order:
            take[size]()
            seen.append(drawn[size].tolist())
        return seen, torch.cuda.get_rng_state(GPU)

    with own_stream(GPU):
        expected, after = sequence(steps)
        recorder = GraphRecorder(GPU)
        replays = {size: recorder.record(step) for size, step in steps.items()}
        found, left = sequence(replays)
    assert found == expected and torch.equal(left, after)


@pytest.mark.parametrize("then", ["auto", "no"])
@pytest.mark.parametrize("at", [0, 3, 4, 7])
def test_a_stopped_run_goes_on(tmp_path, monkeypatch, at, then):
    expected = run()
    taken = 0
    take = StaticSteps.take

    def stopping(self, asked):
        nonlocal taken
        for report in take(self, asked):
            taken += 1
            if taken == at + 1:
                signal.raise_signal(signal.SIGINT)
                report = replace(report, stopping=True)
            yield report

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(StaticSteps, "take", stopping)
        run(folder=folder(tmp_path))
    saved = checkpoint.load(folder(tmp_path).path)
    assert (saved["epoch"], saved["batch"]) == divmod(at + 1, 5)
    close(expected, run(replace(TRAINING, graph=then), folder=folder(tmp_path)))


def test_steps_do_not_wait_for_the_gpu():

    task = Task(
        model=network(), data=DATA, training=replace(TRAINING, batch_size=4), device=GPU, mask=mask_of(network())
    )
    with torch.cuda.stream(torch.cuda.Stream(GPU)), Trainer(task, Stop(), progress=False) as trainer:
        steps = trainer.steps()
        next(steps)  # recorded and compared
        with waiting_is_an_error():
            for _ in range(10):  # the losses are looked at every twenty steps
                next(steps)


class Asks(nn.Module):
    """Decides by a value, which the host has to wait for."""

    def forward(self, x):
        return x * 2 if x.sum().item() > 0 else x


def test_what_asks_for_values_runs_eagerly_and_says_so(tmp_path):
    expected = run(replace(TRAINING, graph="no"), model=network().append(Asks()))
    with pytest.warns(UserWarning, match="cannot be captured"):
        model = run(model=network().append(Asks()), folder=folder(tmp_path))
    close(expected, model)
    assert folder(tmp_path).metrics()[0]["step"].startswith("eager: not captured (")
    run(folder=folder(tmp_path, "after"))  # and nothing is left of the recording that failed
    assert folder(tmp_path, "after").metrics()[0]["step"] == "graph"


class Remembers(nn.Module):
    """Has a number on the host that a recording takes for a constant."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x * (1 + self.calls % 5)


def test_a_recording_that_is_not_what_it_records_is_found(tmp_path):
    with pytest.warns(UserWarning, match="differs from eager ones"):
        run(model=network().append(Remembers()), folder=folder(tmp_path))
    assert folder(tmp_path).metrics()[0]["step"].startswith("eager: not captured (step ")


@pytest.mark.filterwarnings("ignore")  # what the compiler has to say of this card
def test_a_compiled_network_in_the_graph(tmp_path):
    close(run(), run(replace(TRAINING, compile="yes"), folder=folder(tmp_path)))
    assert folder(tmp_path).metrics()[0]["step"] == "graph, compiled"


def test_runs_side_by_side_are_what_they_are_alone(tmp_path):
    alone = [run(seed=seed) for seed in range(3)]
    bad = network().append(nn.Threshold(1e30, torch.nan))
    models = [network() for _ in range(3)]
    tasks = [
        Task(model=m, data=DATA, training=TRAINING, device=GPU, mask=mask_of(m), seed=s) for s, m in enumerate(models)
    ]
    tasks.append(Task(model=bad, data=DATA, training=TRAINING, device=GPU))
    outcomes = dict(train_many(tasks))
    for number, (one, other) in enumerate(zip(alone, models, strict=True)):
        assert isinstance(outcomes[number], TrainResult)
        close(one, other)
    assert isinstance(outcomes[3], NonFiniteError)
