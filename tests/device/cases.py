"""Pruning, training and judging on a pretended device, each against the same on the CPU.

    python -m tests.device.cases

prints a line of JSON for each case: its name, and what went wrong.
"""

import json
import signal
import sys
import tempfile
import traceback
import warnings
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from PIL import Image

import skeletal
from skeletal.harness.config import Pruning, Setup, resolve
from skeletal.harness.console.interrupt import Interrupted
from skeletal.harness.data import Stream, resident
from skeletal.harness.runs import best_of, finding
from skeletal.harness.runs.captured_scoring import CapturedDerivatives
from skeletal.harness.runs.measure import measured
from skeletal.harness.store.folders import MASK, RunFolder
from skeletal.harness.training import choose_step
from skeletal.harness.training.several import train_many
from skeletal.harness.training.step import EagerSteps
from skeletal.harness.training.task import Task
from skeletal.harness.training.train import train
from tests.cases import convnet, images
from tests.device.pretended import DEVICE, NAME, MixedError, There, on
from tests.harness.training.recorded import DATA, TRAINING, Uncaptured, mask_of, network

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
CASES = {}


def case(function):
    """One case; it raises where something is wrong."""
    CASES[function.__name__] = function
    return function


def here(values):
    """The same tensors on the CPU."""
    return {name: value.detach().value if isinstance(value, There) else value for name, value in values.items()}


def equal(one, other):
    one, other = here(one), here(other)
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def pruned(device, *, method="force", **settings):
    settings = {"density": 0.3, "on_collapse": "keep"} | settings
    model = convnet().to(device)
    mask = skeletal.prune(model, images(2), method=method, **settings)
    assert all(keep.device.type == "cpu" for keep in mask.values())
    return mask


for name, row in skeletal.METHODS.items():
    for way in ("train", "eval"):

        def found(method=name, mode=way, steps=None if row.one_shot else 2):
            assert pruned(DEVICE, method=method, steps=steps, bn_mode=mode) == pruned(
                "cpu", method=method, steps=steps, bn_mode=mode
            )

        CASES[f"{name}, {way}"] = found


@case
def what_a_gpu_refuses():
    there = torch.ones(3, device=DEVICE)
    for mixing in (
        lambda: there + torch.ones(3),
        lambda: torch.ones(3)[there.long()],
        lambda: torch.rand(3, device=DEVICE, generator=torch.Generator()),
    ):
        try:
            mixing()
        except MixedError:
            continue
        raise AssertionError("it was not refused")
    assert (there + torch.tensor(1.0))[torch.tensor([0])].tolist() == [2.0]


@case
def patterns_and_small_batches():
    for settings in ({"pattern": "2:4"}, {"pattern": "2x2"}, {"pattern": "channels"}, {"micro_batch": 4}):
        assert pruned(DEVICE, steps=2, **settings) == pruned("cpu", steps=2, **settings)


def found_by_harness(device, data=None, model="vgg-mini", **changes):
    setup = Setup(model=model, data="digits", device=str(device))
    if data is not None:
        setup = replace(setup, data=str(data), image_size=32, workers=0)
    loaded = finding.load_data(setup)
    asked = resolve(Pruning(**{"density": 0.1, "steps": 3, "prune_batch_size": 16} | changes), "quick")
    return finding.find_mask(finding.create_model(setup, loaded), loaded, setup, asked, progress=False)


@case
def masks_of_the_harness():
    for changes in ({}, {"sampling": "balanced"}, {"method": "snip", "steps": 1, "batches_per_step": 3}):
        assert found_by_harness(NAME, **changes) == found_by_harness("cpu", **changes)


@case
def best_of_several():
    for changes in ({}, {"sampling": "balanced"}):
        there, ours = (found_by_harness(device, best_of=2, **changes) for device in (NAME, "cpu"))
        assert there == ours and there.metadata["best_of"] == ours.metadata["best_of"]


@case
def best_of_several_on_image_folders():
    draw = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as root:
        for part in ("train", "val"):
            for name in "ab":
                place = Path(root, part, name)
                place.mkdir(parents=True)
                for k in range(12):
                    Image.fromarray(draw.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(place / f"{k}.png")
        asked = dict(data=root, model="resnet20-cifar", best_of=2, steps=2, prune_batch_size=8)
        found = found_by_harness(NAME, density=0.03, **asked)  # compared by the sparse engine, on a CPU
        assert "best_of" in found.metadata


def recording(recorder):
    """Let steps be recorded by what stands in for CUDA graphs."""
    return mock.patch.object(choose_step, "recorder_for", lambda device: recorder)


@case
def recorded_scoring():
    for settings in ({"steps": 3}, {"method": "snip", "batches_per_step": 3}):
        with recording(recorder := Uncaptured()):
            there = pruned(DEVICE, engine=CapturedDerivatives, **settings)
        assert recorder.recorded and there == pruned("cpu", **settings)


def trained(device, root=None, name="run", **changes):
    model, mask, folder = network(), mask_of(network()), None
    if root is not None:
        folder = RunFolder.open(Path(root), f"{name}-{device}", {})
        if not (folder.path / MASK).exists():
            mask.save(folder.path / MASK)
    train(model, DATA, replace(TRAINING, **changes), mask=mask, folder=folder, device=str(device), progress=False)
    return model


def there_as_here(**changes):
    with tempfile.TemporaryDirectory() as root:
        ours, there = trained("cpu", root, **changes), trained(NAME, root, **changes)
        equal(ours.state_dict(), there.state_dict())
        of_both = [RunFolder.open(Path(root), f"run-{device}", {}) for device in ("cpu", NAME)]
        one, other = (skeletal.Mask.load(folder.path / MASK) for folder in of_both)
        losses = [[row["train_loss"] for row in folder.metrics()] for folder in of_both]
        assert one == other and losses[0] == losses[1]
        return one


@case
def training():
    for changes in ({"momentum": 0.0}, {"decay": "one-cycle", "test_every": 1}):
        there_as_here(**changes)


@case
def masks_that_move():
    for changes in (
        dict(update="set", update_every=3, update_fraction=0.3),
        dict(update="rigl", update_every=3, update_fraction=0.3),
        dict(update="gradual", update_every=3, update_density=0.1),
    ):
        assert there_as_here(**changes) != mask_of(network())


@case
def resuming():
    take = EagerSteps.take
    for changes in ({}, {"update": "rigl", "update_every": 3, "update_fraction": 0.3}):
        taken = 0

        def stopping(self, asked):
            nonlocal taken
            for report in take(self, asked):
                taken += 1
                if taken == 8:
                    signal.raise_signal(signal.SIGINT)
                    report = replace(report, stopping=True)
                yield report

        with tempfile.TemporaryDirectory() as root:
            whole = trained("cpu", root, "whole", **changes)
            with mock.patch.object(EagerSteps, "take", stopping):
                try:
                    trained(NAME, root, "stopped", **changes)
                    raise AssertionError("it was not stopped")
                except Interrupted:
                    pass
            equal(whole.state_dict(), trained(NAME, root, "stopped", **changes).state_dict())


@case
def the_recorded_step():
    with recording(recorder := Uncaptured()):
        there = trained(NAME)
    assert recorder.recorded == 2
    equal(trained("cpu").state_dict(), there.state_dict())


@case
def several_at_once():
    models = [network(), network()]
    tasks = [
        Task(model=model, data=DATA, training=TRAINING, device=DEVICE, mask=mask_of(network()), seed=seed)
        for seed, model in enumerate(models)
    ]
    assert not [outcome for _, outcome in train_many(tasks) if isinstance(outcome, Exception)]
    equal(trained("cpu").state_dict(), models[0].state_dict())


def masked(device):
    """A network on a device, a mask for it, its data set and images there."""
    setup = Setup(model="vgg-mini", data="digits", device=str(device))
    data = finding.load_data(setup)
    x, _ = next(iter(Stream(resident(data.train, torch.device(device)), 16, 1)))
    return finding.create_model(setup, data).to(device), found_by_harness("cpu"), data, x


@case
def what_is_known_of_a_mask():
    def known(device):
        model, mask, data, x = masked(device)
        return skeletal.diagnose(model, mask, x[:2]), measured(model, data, mask, seed=0, batches=2)

    assert known(DEVICE) == known("cpu")


@case
def predictors_of_accuracy():
    import predictors

    def measures(device):
        model, mask, data, _ = masked(device)
        return predictors.measures(model, mask, data, torch.device(device), 0)

    predictors.BATCH = 32
    assert measures(DEVICE) == measures("cpu")


@case
def compaction():
    model, mask, _, x = masked(DEVICE)
    with torch.no_grad():
        small = skeletal.compact(model, mask, x, multiple_of=8)
        mask.attach(model.eval())
        apart = (small.model.eval()(x) - model(x)).abs().max().item()
    assert apart < 1e-4
    assert all(isinstance(value, There) for value in small.model.state_dict().values())


def main():
    """Run all, whatever fails."""
    best_of.STEPS = 3
    for name, run in CASES.items():
        problem = None
        try:
            with warnings.catch_warnings(), on():
                warnings.simplefilter("ignore")
                run()
        except Exception as error:
            places = traceback.extract_tb(error.__traceback__)[-6:]
            where = " < ".join(f"{Path(place.filename).name}:{place.lineno}" for place in reversed(places))
            problem = f"{type(error).__name__}: {str(error)[:300]} ({where})"
        print(json.dumps({"case": name, "problem": problem}), flush=True)


if __name__ == "__main__":
    main()
