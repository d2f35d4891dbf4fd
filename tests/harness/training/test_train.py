import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from skeletal.core.errors import NonFiniteError
from skeletal.harness.config import Training
from skeletal.harness.console.interrupt import Interrupted
from skeletal.harness.store.folders import RunFolder
from skeletal.harness.store.pace import Pace
from skeletal.harness.training import checkpoint
from skeletal.harness.training.rate import milestones, one_cycle
from skeletal.harness.training.train import train

EXAMPLES, CLASSES, BATCH = 70, 3, 16  # five batches, the last of 6
TRAINING = Training(
    epochs=3, batch_size=BATCH, lr=0.05, momentum=0.9, weight_decay=5e-4, milestones=(1 / 3, 2 / 3), engine="dense"
)


class Split:
    """Blobs, shuffled as a function of (seed, epoch); `before[epoch, batch]` is called before that batch."""

    def __init__(self, size, shape, before=None):
        g = torch.Generator().manual_seed(size)
        self.y = torch.arange(size) % CLASSES
        self.x = torch.randn(size, *shape, generator=g) + self.y.view(-1, *[1] * len(shape))
        self.before = before or {}

    def __len__(self):
        return len(self.y)

    def batches(self, batch_size, *, train, seed=0, epoch=0, start=0, drop_last=False):
        g = torch.Generator().manual_seed(1000 * seed + epoch)
        order = torch.randperm(len(self), generator=g) if train else torch.arange(len(self))
        return Pass(self, order.split(batch_size) if len(self) else (), epoch, start)


class Pass:
    def __init__(self, split, order, epoch, start):
        self.split, self.order, self.epoch, self.start = split, order, epoch, start

    def __len__(self):
        return len(self.order) - self.start

    def __iter__(self):
        for batch, index in enumerate(self.order):
            if batch >= self.start:
                self.split.before.pop((self.epoch, batch), lambda: None)()
                yield self.split.x[index], self.split.y[index]


def blobs(shape=(8,), before=None, validation=20):
    return SimpleNamespace(
        num_classes=CLASSES,
        blank=lambda: torch.zeros(1, *shape),
        train=Split(EXAMPLES, shape, before),
        validation=Split(validation, shape),
        test=Split(31, shape),
    )


def mlp():
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, CLASSES))


def convnet():
    torch.manual_seed(7)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, CLASSES),
    )  # fmt: skip


class HalfMask(dict):
    """Holds the even columns of the first layer of `mlp` at 0, and counts who asks."""

    def __init__(self):
        super().__init__({"0.weight": (torch.arange(8) % 2 == 1).expand(16, 8)})
        self.checks = 0

    def attach(self, model, optimizer=None):
        assert optimizer is not None and not optimizer.state
        self._zero(model)
        hook = optimizer.register_step_post_hook(lambda *_: self._zero(model))
        return SimpleNamespace(detach=hook.remove)

    @torch.no_grad()
    def _zero(self, model):
        model[0].weight[:, ::2] = 0

    def check(self, model):
        self.checks += 1
        assert not model[0].weight[:, ::2].any()


def folder(tmp_path, name="run"):
    return RunFolder.open(tmp_path, name, {})


def run(model, data, training=TRAINING, **options):
    return train(model, data, training, **{"device": "cpu", "progress": False, **options})


def timeless(rows):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def same(a, b):
    """Equality to the bit, through nested containers."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_training_learns_and_reports(tmp_path):
    place = folder(tmp_path)
    model = mlp()
    result = run(model, blobs(), folder=place)
    rows = place.metrics()
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    assert [row["lr"] for row in rows] == pytest.approx([0.05, 0.005, 0.0005])
    assert rows[0]["train_loss"] > rows[-1]["train_loss"]
    assert result.epochs == 3 and result.train.examples == EXAMPLES
    assert result.validation.examples == 20 and result.test.examples == 31
    assert result.test.top1 > 60 and result.test.top5 == 100
    assert result.seconds > 3 * result.seconds_per_epoch > 0
    assert ["test_top1" in row for row in rows] == [False, False, True]
    assert same(load_file(place.path / "model.safetensors"), dict(model.state_dict()))
    assert not place.finished  # the caller's part


def test_it_is_the_textbook_loop():
    data, model, reference = blobs(), mlp(), mlp()
    training = Training(epochs=2, batch_size=BATCH, lr=0.1, momentum=0.9, weight_decay=1e-3, milestones=(0.5,))
    run(model, data, training, seed=3)
    torch.manual_seed(3)
    velocity = [torch.zeros_like(p) for p in reference.parameters()]
    for epoch, lr in enumerate([0.1, 0.01]):
        for x, y in data.train.batches(BATCH, train=True, seed=3, epoch=epoch):
            reference.zero_grad()
            nn.functional.cross_entropy(reference(x), y).backward()
            with torch.no_grad():
                for p, v in zip(reference.parameters(), velocity, strict=True):
                    v.mul_(0.9).add_(p.grad + 1e-3 * p)
                    p.sub_(lr * v)
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_skeleton_stays_one_and_is_checked_before_every_checkpoint(tmp_path):
    model, mask = mlp(), HalfMask()
    run(model, blobs(), mask=mask, folder=folder(tmp_path))
    assert mask.checks == 3
    assert not model[0].weight[:, ::2].any() and model[0].weight[:, 1::2].all()


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_real_mask_holds(channels_last):
    Mask = pytest.importorskip("skeletal.core.masks.mask").Mask
    model = convnet()
    keep = torch.rand_like(model[0].weight) < 0.3
    training = Training(**{**vars(TRAINING), "channels_last": channels_last})
    run(model, blobs((3, 6, 6)), training, mask=Mask({"0.weight": keep}))
    assert torch.equal(model[0].weight != 0, keep)


@pytest.mark.parametrize("stop_at", [(0, 1), (1, 3), (1, 4), (2, 0)])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path, capsys, stop_at, number):
    whole = folder(tmp_path, "whole")
    expected = mlp()
    run(expected, blobs(), folder=whole, mask=HalfMask())

    parts = folder(tmp_path, "parts")
    data = blobs(before={stop_at: lambda: signal.raise_signal(number)})
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted) as stopped:
        run(mlp(), data, folder=parts, mask=HalfMask(), resume_command="skeletal train --resume it")
    assert stopped.value.folder is parts
    assert "skeletal train --resume it" in capsys.readouterr().err
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    saved = checkpoint.load(parts.path)
    after = stop_at[1] + 1  # the step that was under way is finished
    assert (saved["epoch"], saved["batch"]) == ((stop_at[0], after) if after < 5 else (stop_at[0] + 1, 0))

    torch.manual_seed(99)  # a new process would have another state
    resumed = mlp()
    result = run(resumed, data, folder=parts, mask=HalfMask())
    assert same(dict(expected.state_dict()), dict(resumed.state_dict()))
    a, b = checkpoint.load(whole.path), checkpoint.load(parts.path)
    for part in ("model", "optimizer", "scheduler", "rng", "epoch", "batch"):
        assert same(a[part], b[part]), part
    assert timeless(whole.metrics()) == timeless(parts.metrics())
    assert result.test.top1 == whole.metrics()[-1]["test_top1"]


class Rare(Pace):
    """Writes the first checkpoint, and then only what has to be written."""

    def due(self):
        return self.saved is None


@pytest.mark.parametrize("stop", [False, True])
def test_a_run_that_writes_few_checkpoints_goes_on_to_the_same_bits(tmp_path, monkeypatch, stop):
    whole, parts = folder(tmp_path, "whole"), folder(tmp_path, "parts")
    expected = mlp()
    run(expected, blobs(), folder=whole)
    monkeypatch.setattr("skeletal.harness.training.trainer.Pace", Rare)

    def end():
        if stop:
            signal.raise_signal(signal.SIGINT)
        else:
            raise SystemExit

    with pytest.raises(Interrupted if stop else SystemExit):
        run(mlp(), blobs(before={(2, 1): end}), folder=parts)
    saved = checkpoint.load(parts.path)
    assert (saved["epoch"], saved["batch"]) == ((2, 2) if stop else (1, 0))
    resumed = mlp()
    run(resumed, blobs(), folder=parts)
    assert same(dict(expected.state_dict()), dict(resumed.state_dict()))
    assert timeless(whole.metrics()) == timeless(parts.metrics())
    assert checkpoint.load(parts.path)["epoch"] == 3


def test_one_cycle_rises_and_falls(tmp_path):
    place = folder(tmp_path)
    run(mlp(), blobs(), replace(TRAINING, epochs=8, decay="one-cycle"), folder=place)
    rates = [row["lr"] for row in place.metrics()]
    assert rates == pytest.approx(
        [TRAINING.lr * x for x in (1 / 4, 3 / 4, 11 / 12, 9 / 12, 7 / 12, 5 / 12, 3 / 12, 1 / 12)]
    )


@pytest.mark.parametrize("epochs", [1, 2, 3, 40, 350])
def test_one_cycle_is_above_zero_and_at_most_one(epochs):
    shares = [one_cycle(epoch, epochs) for epoch in range(epochs)]
    assert all(0 < share <= 1 for share in shares)
    peak = shares.index(max(shares))
    assert shares[: peak + 1] == sorted(shares[: peak + 1]) and shares[peak:] == sorted(shares[peak:], reverse=True)


def test_a_killed_run_drops_the_epoch_it_had_begun(tmp_path):
    whole, killed = folder(tmp_path, "whole"), folder(tmp_path, "killed")
    run(mlp(), blobs(), folder=whole)

    def kill():
        raise SystemExit  # no handler of ours sees it, as with SIGKILL

    data = blobs(before={(1, 2): kill})
    with pytest.raises(SystemExit):
        run(mlp(), data, folder=killed)
    killed.append({"epoch": 1, "loss": "of a checkpoint that was never written"})
    run(mlp(), data, folder=killed)
    assert timeless(whole.metrics()) == timeless(killed.metrics())
    assert same(checkpoint.load(whole.path)["optimizer"], checkpoint.load(killed.path)["optimizer"])


def test_a_trained_run_only_repeats_its_result(tmp_path):
    place = folder(tmp_path)
    first = run(mlp(), blobs(), folder=place)

    def never():
        raise AssertionError("trained again")

    again = run(mlp(), blobs(before={(0, 0): never}), folder=place)
    assert (again.train, again.validation, again.test) == (first.train, first.validation, first.test)


def test_a_second_interrupt_does_not_wait(tmp_path):
    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as stopped:
        run(mlp(), blobs(before={(0, 2): twice}), folder=folder(tmp_path))
    assert not isinstance(stopped.value, Interrupted)
    assert checkpoint.load(folder(tmp_path).path) is None


def test_a_stop_without_a_folder_says_that_nothing_is_saved():
    with pytest.raises(Interrupted, match=r"step 3 of 5.*nothing is saved"):
        run(mlp(), blobs(before={(0, 2): lambda: signal.raise_signal(signal.SIGTERM)}))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="workers are forked on POSIX only")
@pytest.mark.parametrize("number, ends", [(signal.SIGINT, False), (signal.SIGTERM, True)])
def test_forked_data_workers_survive_an_interrupt_but_not_a_termination(number, ends):
    codes = []

    def in_worker():
        child = os.fork()
        if child == 0:
            signal.raise_signal(number)
            signal.raise_signal(number)
            os._exit(0)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    run(mlp(), blobs(before={(0, 1): in_worker}))
    assert codes == [128 + number if ends else 0]


def test_training_works_outside_the_main_thread():
    results = []
    thread = threading.Thread(target=lambda: results.append(run(mlp(), blobs())))
    thread.start()
    thread.join()
    assert results[0].epochs == 3


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    run(mlp(), blobs(), folder=folder(tmp_path))
    with pytest.raises(ValueError, match=r"other settings \(seed\)"):
        run(mlp(), blobs(), folder=folder(tmp_path), seed=1)


def test_lost_metrics_are_noticed(tmp_path):
    place = folder(tmp_path)
    run(mlp(), blobs(), folder=place)
    (place.path / "metrics.jsonl").unlink()
    with pytest.raises(ValueError, match=r"metrics\.jsonl has 0 lines"):
        run(mlp(), blobs(), folder=place)


def test_a_loss_that_is_nan_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    place, data = folder(tmp_path), blobs()
    data.train.before[1, 2] = lambda: data.train.x.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match=r"loss is nan in epoch 2, step 3.*state\.pt holds the last good"):
        run(mlp(), data, folder=place)
    state = checkpoint.load(place.path)
    assert (state["epoch"], state["batch"]) == (1, 0)
    assert all(value.isfinite().all() for value in state["model"].values())


def test_weights_that_overflow_in_the_last_step_are_not_saved(tmp_path):
    model = mlp()
    model[4].bias.register_hook(lambda g: torch.full_like(g, torch.inf))
    training = Training(**{**vars(TRAINING), "batch_size": EXAMPLES})
    with pytest.raises(NonFiniteError, match=r"4\.bias is not finite in epoch 1, step 1"):
        run(model, blobs(), training, folder=folder(tmp_path))
    assert checkpoint.load(folder(tmp_path).path) is None


def test_bf16_and_float32_in_one_process_whatever_the_caller_uses():
    from accelerate import Accelerator

    callers = Accelerator(cpu=True)
    seen = []
    for bf16 in (False, True, False):
        model = mlp()
        hook = model[0].register_forward_hook(lambda _, __, out: seen.append(out.dtype))
        result = run(model, blobs(), Training(**{**vars(TRAINING), "bf16": bf16}))
        hook.remove()
        assert result.test.top1 > 60
        assert set(seen) == {torch.bfloat16 if bf16 else torch.float32}
        assert all(p.dtype == torch.float32 for p in model.parameters())
        assert "forward" not in vars(model)  # nothing of accelerate's stays behind
        seen.clear()
    assert callers.mixed_precision == "no" and callers.device.type == "cpu"


def test_channels_last_reaches_weights_images_and_resumed_momentum(tmp_path):
    training = Training(**{**vars(TRAINING), "channels_last": True, "test_every": 2})
    model, place = convnet(), folder(tmp_path)
    parameters = list(model.parameters())
    layouts = []
    model[0].register_forward_pre_hook(
        lambda _, x: layouts.append(x[0].is_contiguous(memory_format=torch.channels_last))
    )
    data = blobs((3, 6, 6), before={(1, 1): lambda: signal.raise_signal(signal.SIGINT)})
    with pytest.raises(Interrupted):
        run(model, data, training, folder=place)
    run(model, data, training, folder=place)
    assert all(layouts)
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert ["test_top1" in row for row in place.metrics()] == [False, True, True]

    straight = convnet()
    run(straight, blobs((3, 6, 6)), training)
    assert same(dict(straight.state_dict()), dict(model.state_dict()))


def test_tied_weights_can_be_loaded_again(tmp_path):
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    model[2].weight = model[0].weight
    run(model, blobs(), folder=folder(tmp_path))
    trained = model[0].weight.detach().clone()
    with torch.no_grad():
        model[0].weight.zero_()
    model.load_state_dict(load_file(folder(tmp_path).path / "model.safetensors"))
    assert torch.equal(model[0].weight, trained) and model[2].weight is model[0].weight


def test_no_validation_examples():
    assert run(mlp(), blobs(validation=0)).validation is None


@pytest.mark.parametrize("epochs, expected", [(350, [150, 250]), (2, [1]), (1, [1]), (7, [3, 5])])
def test_milestones_keep_their_proportion(epochs, expected):
    assert milestones(Training(epochs=epochs, milestones=(150 / 350, 250 / 350))) == expected


@pytest.mark.parametrize(
    "change, message",
    [
        ({"lr": None, "epochs": None}, "needs epochs, lr"),
        ({"epochs": 0}, "epochs must"),
        ({"batch_size": 0}, "batch_size must"),
        ({"engine": "spars"}, "unknown engine 'spars'"),
    ],
)
def test_settings_are_checked(change, message):
    with pytest.raises(ValueError, match=message):
        run(mlp(), blobs(), Training(**{**vars(TRAINING), **change}))


def test_an_empty_training_split():
    data = blobs()
    data.train = Split(0, (8,))
    with pytest.raises(ValueError, match="nothing to train on"):
        run(mlp(), data)


def test_one_line_per_epoch_where_there_is_no_terminal(capsys):
    run(mlp(), blobs())
    assert capsys.readouterr().err == ""
    run(mlp(), blobs(), progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and lines[2].startswith("epoch 3/3  loss ")


@pytest.mark.parametrize("able", [True, False])
def test_a_long_training_on_a_cpu_is_told_of_bfloat16_once(tmp_path, capsys, monkeypatch, able):
    monkeypatch.setattr("skeletal.harness.training.trainer.LONG", 5)
    monkeypatch.setattr("skeletal.harness.console.display.multiplies_bfloat16", lambda: able)
    run(mlp(), blobs(), progress=True)
    assert capsys.readouterr().err.count("--bf16 may take half the time") == able
    run(mlp(), blobs(), replace(TRAINING, bf16=True), progress=True)
    assert "--bf16" not in capsys.readouterr().err


def test_a_bar_with_the_time_left_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    run(mlp(), blobs(), progress=True)
    shown = capsys.readouterr().err
    assert "3/3" in shown and "0:00:00" in shown and "validation" in shown


def test_the_callers_denormals_come_back():
    run(mlp(), blobs())
    assert (torch.full((1,), 1e-30) * 1e-9).item() != 0


def test_importing_does_not_load_accelerate():
    code = "import sys, skeletal.harness.training.train; sys.exit('accelerate' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
