from dataclasses import asdict

import pytest

from skeletal.harness.runs.load import setup_of
from skeletal.harness.runs.review import evaluate_run
from skeletal.harness.store.folders import RunFolder
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


def test_a_run_is_read_back_as_its_data_was_read(tmp_path):
    told = {"model": "vgg-mini", "data": "photos", "seed": 3, "image_size": 32, "skip_corrupt": True}
    setup = setup_of(RunFolder.open(tmp_path, "run", told), str(tmp_path))
    assert (setup.image_size, setup.skip_corrupt, setup.data_dir) == (32, True, tmp_path)
    with pytest.raises(ValueError, match="a part of a run, such as a round of imp"):
        setup_of(RunFolder.open(tmp_path, "01", {"round": 1, "kept": 9}))
