from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import skeletal
from skeletal.harness import experiment
from skeletal.harness.config import Pruning, Setup, Training, resolve

SETUP = Setup(device="cpu")
RANDOM = resolve(Pruning(method="random", density=0.05), "quick")
TRAINING = resolve(Training(epochs=1, batch_size=512, engine="dense"), "quick")


def run(root, setup=SETUP, pruning=RANDOM, training=TRAINING, **options):
    return experiment.run(setup, pruning, training, root=root, progress=False, **options)


def fresh(setup=SETUP):
    data = experiment.load_data(setup)
    return experiment.create_model(setup, data), data


def never(*_, **__):
    raise AssertionError("done again")


def test_find_mask_takes_the_settings_and_leaves_the_weights():
    model, data = fresh()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pruning = resolve(
        Pruning(density=0.1, steps=2, schedule="linear", batches_per_step=3, prune_batch_size=32, bn_mode="eval"),
        "quick",
    )
    mask = experiment.find_mask(model, data, SETUP, pruning, progress=False)
    assert mask.kept == round(0.1 * mask.total)
    expected = {**asdict(pruning), "seed": 0, "network": "vgg-mini", "data": "digits"}
    del expected["sparsity"], expected["on_collapse"], expected["loss"]
    expected["engine"] = expected.pop("scoring_engine")
    assert {name: mask.metadata[name] for name in expected} == expected
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_official_codes_loss_and_the_absolute_average_give_other_masks():
    found = []
    for options in ({}, {"loss": "nll"}, {"average": "absolute"}):
        pruning = resolve(Pruning(method="snip", batches_per_step=2, **options), "quick")
        found.append(experiment.find_mask(*fresh(), SETUP, pruning, progress=False))
    assert [mask.metadata["loss"] for mask in found] == ["default", "nll_loss", "default"]
    assert found[0] != found[1] and found[0] != found[2]


def test_the_seed_is_that_of_weights_batches_and_scores():
    masks = []
    for seed in (0, 0, 1):
        setup = replace(SETUP, seed=seed)
        snip = resolve(Pruning(method="snip"), "quick")
        masks.append(experiment.find_mask(*fresh(setup), setup, snip, progress=False))
    assert masks[0] == masks[1] != masks[2]


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match=r"unknown method 'forc'\. Did you mean 'force'\? There are .*force"):
        experiment.find_mask(*fresh(), SETUP, resolve(Pruning(method="forc"), "quick"))


def test_an_interrupted_run_keeps_its_mask(tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(AssertionError, match="done again"):
        patch.setattr(experiment, "train", never)
        run(tmp_path)
    (path,) = tmp_path.iterdir()
    found = skeletal.Mask.load(path / "mask.safetensors")
    monkeypatch.setattr(experiment, "prune", never)
    folder, result = run(tmp_path)
    assert folder.path == path and folder.finished
    assert skeletal.Mask.load(path / "mask.safetensors") == found
    assert result["kept"] == found.kept and result["prune_seconds"] == found.metadata["prune_seconds"]


def test_a_finished_run_is_only_read(tmp_path, monkeypatch):
    folder, result = run(tmp_path)
    for name in ("load_data", "create_model", "prune", "train"):
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
    mask = experiment.find_mask(*fresh(), SETUP, RANDOM, progress=False)
    mask.save(tmp_path / "one.safetensors")
    mask.metadata["comment"] = "the same weights"
    mask.save(tmp_path / "two.safetensors")
    runs = tmp_path / "runs"
    folder, result = experiment.train_masked(SETUP, TRAINING, tmp_path / "one.safetensors", root=runs, progress=False)
    again, same = experiment.train_masked(SETUP, TRAINING, tmp_path / "two.safetensors", root=runs, progress=False)
    assert folder.path == again.path and result == same
    assert result["method"] == "random" and result["kept"] == mask.kept
    weights = load_file(folder.path / "model.safetensors")
    assert not any(weights[layer][~keep].any() for layer, keep in mask.items())


def test_a_mask_without_a_history_can_be_trained_and_shown(tmp_path):
    from skeletal.cli.settings import summary

    mask = experiment.find_mask(*fresh(), SETUP, RANDOM, progress=False)
    skeletal.Mask(dict(mask)).save(tmp_path / "bare.safetensors")
    _, result = experiment.train_masked(SETUP, TRAINING, tmp_path / "bare.safetensors", root=tmp_path, progress=False)
    assert "None" not in summary(result)


@pytest.mark.parametrize(
    "metadata, what", [({"seed": 4}, "seed 4"), ({"network": "vgg19-cifar"}, "network vgg19-cifar")]
)
def test_a_mask_found_elsewhere_is_a_warning(tmp_path, metadata, what):
    mask = experiment.find_mask(*fresh(), SETUP, RANDOM, progress=False)
    mask.metadata |= metadata
    mask.save(tmp_path / "mask.safetensors")
    with pytest.warns(UserWarning, match=f"the mask was found with {what}, this run has"):
        experiment.train_masked(SETUP, TRAINING, tmp_path / "mask.safetensors", root=tmp_path, progress=False)


def test_evaluation_repeats_what_training_found(tmp_path):
    folder, result = run(tmp_path)
    for split in ("test", "validation"):
        assert asdict(experiment.evaluate_run(folder.path, split=split)) == result[split]
    assert experiment.evaluate_run(folder.path, split="train").examples == result["train"]["examples"]
    with pytest.raises(FileNotFoundError, match="not a run folder"):
        experiment.evaluate_run(tmp_path)


def test_a_collapse_is_a_warning_and_is_in_the_result(tmp_path):
    with pytest.warns(skeletal.CollapseWarning):
        _, result = run(tmp_path, pruning=resolve(Pruning(method="snip", density=0.005), "quick"))
    assert result["connected"] is False and result["empty_layers"]
    assert result["kept"] == round(0.005 * result["prunable"])
