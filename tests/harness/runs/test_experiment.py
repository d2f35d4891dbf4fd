from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import nn

import skeletal
from skeletal.harness.config import Pruning, Training, resolve
from skeletal.harness.runs import experiment, finding, rewinding
from tests.harness.runs.test_finding import SETUP, fresh

RANDOM = resolve(Pruning(method="random", density=0.05), "quick")
TRAINING = resolve(Training(epochs=1, batch_size=512, engine="dense"), "quick")


def run(root, setup=SETUP, pruning=RANDOM, training=TRAINING, **options):
    return experiment.run(setup, pruning, training, root=root, progress=False, **options)


def never(*_, **__):
    raise AssertionError("done again")


def test_an_interrupted_run_keeps_its_mask(tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(AssertionError, match="done again"):
        patch.setattr(experiment, "train", never)
        run(tmp_path)
    (path,) = tmp_path.iterdir()
    found = skeletal.Mask.load(path / "mask.safetensors")
    monkeypatch.setattr(finding, "prune", never)
    folder, result = run(tmp_path)
    assert folder.path == path and folder.finished
    assert skeletal.Mask.load(path / "mask.safetensors") == found
    assert result["kept"] == found.kept and result["prune_seconds"] == found.metadata["prune_seconds"]


def test_a_last_batch_that_cannot_be_trained_on_is_refused_before_the_pruning(tmp_path, monkeypatch):
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 10))
    monkeypatch.setattr(experiment, "create_model", lambda *_: network)
    monkeypatch.setattr(finding, "prune", never)
    images = len(finding.load_data(SETUP).train)
    with pytest.raises(ValueError, match=f"{images} training images in batches of {images - 1} leave a single one"):
        run(tmp_path, training=replace(TRAINING, batch_size=images - 1))
    assert not list(tmp_path.rglob("config.json"))


@pytest.mark.parametrize("method", ["random", "imp"])
def test_how_to_resume_is_told_by_whoever_knows_it(tmp_path, monkeypatch, method):
    told = []

    def interrupted(*_, resume_command, **__):
        told.append(resume_command)
        raise KeyboardInterrupt

    for where in (experiment, rewinding):
        monkeypatch.setattr(where, "train", interrupted)
    pruning = resolve(Pruning(method=method, density=0.5), "quick")
    training = replace(TRAINING, epochs=2)
    for options in ({}, {"resume_command": "python mine.py"}):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, pruning=pruning, training=training, **options)
    assert told == [None, "python mine.py"]


def test_a_finished_run_is_only_read(tmp_path, monkeypatch):
    folder, result = run(tmp_path)
    for name in ("load_data", "create_model", "find_mask", "train"):
        monkeypatch.setattr(experiment, name, never)
    again, same = run(tmp_path)
    assert again.path == folder.path and same == result
    elsewhere = replace(SETUP, data_dir=Path("elsewhere"), device="auto", workers=7)
    assert run(tmp_path, setup=elsewhere, training=replace(TRAINING, engine="sparse"))[1] == result


@pytest.mark.parametrize(
    "change",
    [
        {"setup": replace(SETUP, seed=1)},
        {"setup": replace(SETUP, model="resnet20-cifar")},
        {"pruning": replace(RANDOM, density=0.06)},
        {"training": replace(TRAINING, lr=0.2)},
        {"training": replace(TRAINING, bf16=True)},
    ],
)
def test_whatever_changes_the_outcome_changes_the_identity(change):
    records = {"setup": SETUP, "pruning": RANDOM, "training": TRAINING}
    assert experiment.identity(*records.values()) != experiment.identity(*(records | change).values())


def test_training_with_a_mask_knows_it_by_its_weights(tmp_path):
    mask = finding.find_mask(*fresh(), SETUP, RANDOM, progress=False)
    mask.save(tmp_path / "one.safetensors")
    mask.metadata["comment"] = "the same weights"
    mask.save(tmp_path / "two.safetensors")
    runs = tmp_path / "runs"
    folder, result = experiment.train_masked(SETUP, TRAINING, tmp_path / "one.safetensors", root=runs, progress=False)
    again, same = experiment.train_masked(SETUP, TRAINING, tmp_path / "two.safetensors", root=runs, progress=False)
    assert folder.path == again.path and result == same
    assert result["method"] == "random" and result["kept"] == mask.kept
    assert result["cost"]["finding"] == mask.metadata["cost"] and result["cost"]["training"]["examples"] > 0
    weights = load_file(folder.path / "model.safetensors")
    assert not any(weights[layer][~keep].any() for layer, keep in mask.items())


def test_a_mask_without_a_history_can_be_trained_and_shown(tmp_path):
    from skeletal.cli.settings import summary

    mask = finding.find_mask(*fresh(), SETUP, RANDOM, progress=False)
    skeletal.Mask(dict(mask)).save(tmp_path / "bare.safetensors")
    _, result = experiment.train_masked(SETUP, TRAINING, tmp_path / "bare.safetensors", root=tmp_path, progress=False)
    assert "None" not in summary(result)


@pytest.mark.parametrize(
    "metadata, what", [({"seed": 4}, "seed 4"), ({"network": "vgg19-cifar"}, "network vgg19-cifar")]
)
def test_a_mask_found_elsewhere_is_a_warning(tmp_path, metadata, what):
    mask = finding.find_mask(*fresh(), SETUP, RANDOM, progress=False)
    mask.metadata |= metadata
    mask.save(tmp_path / "mask.safetensors")
    with pytest.warns(UserWarning, match=f"the mask was found with {what}, this run has"):
        experiment.train_masked(SETUP, TRAINING, tmp_path / "mask.safetensors", root=tmp_path, progress=False)


def test_a_collapse_is_a_warning_and_is_in_the_result(tmp_path):
    with pytest.warns(skeletal.CollapseWarning):
        _, result = run(tmp_path, pruning=resolve(Pruning(method="snip", density=0.002), "quick"))
    assert result["connected"] is False and result["empty_layers"]
    assert result["kept"] == round(0.002 * result["prunable"])


def test_a_pattern_is_in_the_folders_name_and_in_the_result(tmp_path):
    pruning = replace(RANDOM, pattern="2:4")
    folder, result = run(tmp_path, pruning=pruning)
    assert folder.path.name.startswith("vgg-mini-digits-random-2of4-0.05-")
    assert result["pattern"] == folder.config["pattern"] == "2:4"
    assert result["kept"] == round(0.05 * result["prunable"])
    moving = resolve(replace(TRAINING, update="set"), "quick")
    with pytest.raises(ValueError, match="would not keep --pattern 2:4"):
        run(tmp_path, pruning=pruning, training=moving)
