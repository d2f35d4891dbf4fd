import json
import os
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from skeletal import Mask
from skeletal.core.errors import NonFiniteError
from skeletal.harness.console import trackers
from skeletal.harness.console.trackers import TensorBoard, require_tensorboard
from skeletal.harness.store.folders import RunFolder
from skeletal.harness.training.train import train
from tests.harness.training.blobs import TRAINING, blobs, mlp

pytest.importorskip("tensorboard")
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

MASK = Mask({"0.weight": torch.arange(128).view(16, 8) % 4 == 0, "4.weight": torch.ones(3, 16)})
LOGGED = replace(TRAINING, tensorboard=True)


def logged(folder):
    """Scalars as TensorBoard shows them: by tag, values by step."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}, events


def open_files():
    found = Path("/proc/self/fd")
    if not found.is_dir():
        pytest.skip("no /proc here, to see which files are open")
    return [os.readlink(link) for link in found.iterdir() if link.is_symlink()]


def run(tmp_path, data=None, training=LOGGED):
    folder = RunFolder.open(tmp_path, "run", {})
    train(mlp(), data or blobs(), training, mask=MASK, folder=folder, device="cpu", progress=False)
    return folder.path


def test_every_number_of_metrics_jsonl_is_a_scalar(tmp_path):
    path = run(tmp_path)
    scalars, events = logged(path / "tensorboard")
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 3
    for row in rows:
        for name, value in row.items():
            if name not in ("epoch", "engine"):
                assert scalars[name.replace("_", "/", 1)][row["epoch"]] == pytest.approx(value, rel=1e-6), name
    assert scalars["density/0.weight"] == {0: 0.25} and scalars["density/4.weight"] == {0: 1.0}
    (text,) = events.Tensors("mask/text_summary")
    assert b"0.weight" in text.tensor_proto.string_val[0] and b"kept 80 of 176" in text.tensor_proto.string_val[0]


def test_a_finished_run_is_logged_as_if_it_had_been_from_the_beginning(tmp_path):
    """The truth is a run that was; what has been logged already is left alone."""
    both = replace(LOGGED, log=("csv",))
    asked, late = run(tmp_path / "asked", training=both), run(tmp_path / "late", training=TRAINING)
    folder = RunFolder.at(late)
    MASK.save(late / "mask.safetensors")
    (late / "metrics.jsonl").write_bytes((asked / "metrics.jsonl").read_bytes())  # the same seconds
    trackers.log_finished(folder, TRAINING)
    assert not (late / "tensorboard").exists() and not (late / "metrics.csv").exists()
    for _ in range(2):
        trackers.log_finished(folder, both)
        assert logged(late / "tensorboard")[0] == logged(asked / "tensorboard")[0]
        assert (late / "metrics.csv").read_bytes() == (asked / "metrics.csv").read_bytes()
        assert len(list((late / "tensorboard").iterdir())) == 1
        (late / "metrics.csv").write_text("epoch\n0\n")  # of a session that knew of it, when the last one did not


def test_without_the_option_nothing_is_written(tmp_path):
    assert not (run(tmp_path, training=TRAINING) / "tensorboard").exists()


def test_it_is_no_part_of_what_a_resumed_run_has_to_repeat(tmp_path):
    """A finished training is taken up again without it."""
    path = run(tmp_path)
    before = (path / "metrics.jsonl").read_bytes()
    assert run(tmp_path, training=TRAINING) == path
    assert (path / "metrics.jsonl").read_bytes() == before


def test_closed_when_training_fails_and_what_was_logged_is_there(tmp_path):
    data = blobs()

    def spoil():
        data.train.x[:] = torch.nan

    data.train.before[1, 0] = spoil
    with pytest.raises(NonFiniteError):
        run(tmp_path, data)
    assert not [file for file in open_files() if "tfevents" in file]
    (place,) = tmp_path.glob("*/tensorboard")
    assert set(logged(place)[0]["train/loss"]) == {0}


def test_a_later_session_replaces_what_an_earlier_one_logged_from_there_on(tmp_path):
    with closing(TensorBoard(tmp_path, MASK)) as first:
        for epoch, loss in enumerate((3.0, 2.0, 9.0)):
            first.epoch({"epoch": epoch, "train_loss": loss})
    with closing(TensorBoard(tmp_path, MASK, start=2)) as second:
        second.epoch({"epoch": 2, "train_loss": 1.0})
    scalars, events = logged(tmp_path)
    assert scalars["train/loss"] == {0: 3.0, 1: 2.0, 2: 1.0}
    assert len(events.Scalars("train/loss")) == 3
    assert len(events.Scalars("density/0.weight")) == 1


def test_without_tensorboard_training_is_refused_before_it_begins(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'skeletal\[tensorboard\]'"):
        run(tmp_path)
    with pytest.raises(ValueError, match="not installed"):
        require_tensorboard()
    assert not (tmp_path / "run" / "tensorboard").exists()
