from dataclasses import asdict, replace

import pytest

from skeletal.core.masks.mask import Mask
from skeletal.harness.config import Pruning, Setup, Training, resolve
from skeletal.harness.runs import experiment
from skeletal.harness.runs.estimate import estimate
from skeletal.harness.runs.load import setup_of
from skeletal.harness.runs.review import evaluate_run
from skeletal.harness.store.folders import MASK, RunFolder
from tests.harness.runs.test_experiment import run


def test_evaluation_repeats_what_training_found(tmp_path):
    folder, result = run(tmp_path)
    for split in ("test", "validation"):
        assert asdict(evaluate_run(folder.path, split=split)) == result[split]
    assert evaluate_run(folder.path, split="train").examples == result["train"]["examples"]
    assert evaluate_run(str(folder.path)).top1 == result["test"]["top1"]
    with pytest.raises(FileNotFoundError, match="not a run folder"):
        evaluate_run(tmp_path)
    with pytest.raises(ValueError, match=r"unknown split 'val'.*validation"):
        evaluate_run(folder.path, split="val")


def test_a_run_without_validation_images(tmp_path):
    """It trains on all training images, tests once, and is read back so."""
    setup = Setup(device="cpu", validation=0.0)
    training = resolve(Training(epochs=2, batch_size=256, engine="dense"), "quick")
    best = resolve(Pruning(method="random", density=0.3, best_of=2), "quick")
    folder, result = experiment.run(setup, best, training, root=tmp_path, progress=True)
    assert (result["train"]["examples"], result["validation"], result["test"]["examples"]) == (1437, None, 360)
    assert not [name for row in folder.metrics() for name in row if name.startswith("val_")]
    assert asdict(evaluate_run(folder.path)) == result["test"]
    assert Mask.load(folder.path / MASK).metadata["validation"] == 0
    with pytest.raises(ValueError, match="no validation images: the run was trained with --validation 0"):
        evaluate_run(folder.path, split="validation")
    assert estimate(setup, replace(best, best_of=1), training).train_seconds > 0


def test_a_run_is_read_back_as_its_data_was_read(tmp_path):
    told = {"model": "vgg-mini", "data": "photos", "seed": 3, "image_size": 32, "skip_corrupt": True}
    setup = setup_of(RunFolder.open(tmp_path, "run", told), str(tmp_path))
    assert (setup.image_size, setup.skip_corrupt, setup.data_dir) == (32, True, tmp_path)
    with pytest.raises(ValueError, match="a part of a run, such as a round of imp"):
        setup_of(RunFolder.open(tmp_path, "01", {"round": 1, "kept": 9}))
