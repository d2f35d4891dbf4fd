from dataclasses import asdict

import pytest

from skeletal.harness.runs.review import evaluate_run
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
