"""Masks and run folders that an earlier version wrote are read, recognised and continued (tests/data/README.md)."""

import json
import tarfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import skeletal
from skeletal.core.files import write_atomically

DATA = Path(__file__).parent.parent / "data" / "format1.tar.xz"
NAME = "vgg-mini-digits-force-0.005-2babed51"
SETTINGS = [
    "--method",
    "force",
    "--steps",
    "3",
    "--density",
    "0.005",
    "--epochs",
    "2",
    "--batch-size",
    "256",
    "--engine",
    "dense",
]


@pytest.fixture
def earlier(tmp_path):
    with tarfile.open(DATA) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def stamps(folder):
    return {file: (file.stat().st_mtime_ns, file.stat().st_ino) for file in folder.rglob("*")}


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_mask_is_loaded(earlier, cli):
    mask = skeletal.Mask.load(earlier / "mask.safetensors")
    assert (mask.kept, mask.total) == (2_358, 471_584)
    assert mask.digest.startswith("3e769744985f4024")
    assert mask == skeletal.Mask.load(earlier / "finished" / NAME / "mask.safetensors")
    assert mask.metadata["method"] == "force" and mask.metadata["connected"] is True
    assert "2,358 of 471,584" in cli("show", earlier / "mask.safetensors").out


def test_a_finished_run_is_recognised_and_can_be_shown_and_scored(earlier, cli):
    folder = earlier / "finished" / NAME
    result, before = json.loads((folder / "result.json").read_text()), stamps(folder)
    again = cli("run", *SETTINGS, "--out", "finished", "--json")
    assert again.json == {"folder": f"finished/{NAME}", **result}
    assert "test top-1 10.28%" in cli("show", folder).out
    scores = cli("eval", folder, "--json").json
    assert scores == {**result["test"], "loss": pytest.approx(result["test"]["loss"], rel=1e-4)}
    assert stamps(folder) == before


def test_an_interrupted_run_goes_on_and_comes_to_the_same_end(earlier, cli):
    """To the rounding of this machine's processor and number of threads."""
    interrupted, finished = earlier / "interrupted" / NAME, earlier / "finished" / NAME
    (first,), expected = rows(interrupted), rows(finished)
    first["seconds"] = 1234.5  # what only the stored run can know
    write_atomically(interrupted / "metrics.jsonl", json.dumps(first) + "\n")
    resumed = cli("run", *SETTINGS, "--out", "interrupted")
    assert resumed.status == 0 and "epoch 1/2" not in resumed.err and "epoch 2/2" in resumed.err
    assert [path.name for path in (earlier / "interrupted").iterdir()] == [NAME]
    kept, new = rows(interrupted)
    assert kept == first
    assert new["train_loss"] == pytest.approx(expected[1]["train_loss"], rel=1e-3)
    weights, truth = (load_file(folder / "model.safetensors") for folder in (interrupted, finished))
    begun = skeletal.models.create("vgg-mini", num_classes=10, in_channels=1, image_size=8, seed=0).state_dict()
    for name, mask in skeletal.Mask.load(earlier / "mask.safetensors").items():
        assert not weights[name][~mask].any()
        off, way = (weights[name] - truth[name]).norm(), (begun[name] * mask - truth[name]).norm()
        assert off < 0.02 * way, name
    assert torch.equal(weights["features.1.num_batches_tracked"], truth["features.1.num_batches_tracked"])
