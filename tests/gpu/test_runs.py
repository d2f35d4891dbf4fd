"""Runs on a GPU by what changes how a step is taken: masks that move, rewinding, the best of several, image folders."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from skeletal.harness.config import Pruning, Setup, Training, resolve
from skeletal.harness.runs import experiment
from skeletal.harness.runs.finding import create_model, find_mask, load_data
from skeletal.harness.runs.load import load_run
from skeletal.harness.store.folders import RunFolder

DEVICE = "cuda"
SETUP = Setup(device=DEVICE)


def asked(**changes):
    return resolve(Pruning(**({"density": 0.1, "steps": 3, "prune_batch_size": 64} | changes)), "quick")


def ran(root, pruning, **changes):
    training = resolve(Training(**({"epochs": 3, "batch_size": 64, "lr": 0.05} | changes)), "quick")
    return experiment.run(SETUP, pruning, training, root=root, progress=False)


@pytest.mark.parametrize(
    "update",
    [
        dict(update="set", update_fraction=0.3),
        dict(update="rigl", update_every=4),
        dict(update="gradual", update_every=4, update_density=0.05),
    ],
    ids=lambda update: update["update"],
)
@pytest.mark.parametrize("fast", [False, True])
def test_a_mask_that_moves_holds_and_the_record_says_why_it_is_eager(tmp_path, update, fast):
    folder, _ = ran(tmp_path, asked(), **update, bf16=fast, channels_last=fast)
    assert {row["step"] for row in folder.metrics()} == {f"eager: --update {update['update']}, a mask that moves"}
    run = load_run(folder.path)
    run.mask.check(run.network)
    assert run.mask.density == pytest.approx(update.get("update_density", 0.1), abs=1e-3)
    assert folder.metrics()[-1]["train_loss"] < folder.metrics()[0]["train_loss"]


def test_every_round_of_iterative_magnitude_pruning_is_recorded(tmp_path):
    folder, _ = ran(tmp_path, asked(method="imp", density=0.3, steps=2, rewind_epochs=1), channels_last=True)
    rounds = [RunFolder.at(place) for place in sorted((folder.path / "rounds").iterdir())]
    assert len(rounds) == 2
    for place in (*rounds, folder):
        assert {row["step"] for row in place.metrics()} == {"graph"}


@pytest.mark.parametrize("density", [0.2, 0.03])
@pytest.mark.parametrize("sampling", ["plain", "balanced"])
def test_the_best_of_several(density, sampling):
    data = load_data(SETUP)
    mask = find_mask(
        create_model(SETUP, data), data, SETUP, asked(density=density, sampling=sampling, best_of=2), progress=False
    )
    assert mask.metadata["best_of"]["chosen"] in (0, 1)


@pytest.mark.filterwarnings("ignore:no network of the 2 masks learns")  # the images are noise
@pytest.mark.parametrize("best_of", [1, 2])
def test_a_mask_for_image_folders(tmp_path, best_of):
    draw = np.random.default_rng(0)
    for part in ("train", "val"):
        for name in "ab":
            (tmp_path / part / name).mkdir(parents=True)
            for k in range(12):
                picture = Image.fromarray(draw.integers(0, 255, (40, 40, 3), dtype=np.uint8))
                picture.save(tmp_path / part / name / f"{k}.png")
    setup = Setup(model="resnet20-cifar", data=str(tmp_path), device=DEVICE, image_size=32, workers=0)
    data = load_data(setup)
    wanted = asked(density=0.03, prune_batch_size=8, best_of=best_of)
    assert find_mask(create_model(setup, data), data, setup, wanted, progress=False).density == pytest.approx(
        0.03, 0.01
    )


def test_what_predicts_accuracy_is_measured(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    predictors = pytest.importorskip("predictors", exc_type=ImportError)
    monkeypatch.setattr(predictors, "BATCH", 64)
    setup = Setup(model="vgg-mini", device=DEVICE)
    data = load_data(setup)
    model = create_model(setup, data)
    mask = find_mask(model, data, setup, asked(), progress=False)
    found = predictors.measures(model, mask, data, torch.device(DEVICE), 0)
    cpu = predictors.measures(create_model(setup, data), mask, data, torch.device("cpu"), 0)
    assert found.keys() == cpu.keys() == predictors.MEASURES.keys()
    for name in ("channels", "weights", "effective", "cut"):
        assert found[name] == cpu[name]
    for name in ("force", "gradient_norm", "paths", "rank"):
        assert found[name] == pytest.approx(cpu[name], rel=0.05)
