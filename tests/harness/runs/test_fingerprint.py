"""The same settings on other data, or on a network that has been rewritten, are not taken for the same run."""

import json
import sys
from dataclasses import replace

import pytest

from skeletal.harness import data as data_sets
from skeletal.harness.comparison.row import labels, row_of
from skeletal.harness.config import Pruning, Setup, Training, resolve
from skeletal.harness.console.interrupt import Interrupted
from skeletal.harness.runs import experiment
from skeletal.harness.runs.measure import measure
from skeletal.harness.runs.review import evaluate_run
from skeletal.harness.store.folders import RunFolder
from tests.harness.data.layouts import encoded, pixels, write_image, write_parquet
from tests.harness.training.blobs import blobs, folder, mlp
from tests.harness.training.blobs import run as train_on

RANDOM = resolve(Pruning(method="random", density=0.3), "quick")
TRAINING = resolve(Training(epochs=1, batch_size=8, engine="dense"), "quick")
NETWORK = """
from torch import nn
def net(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, {width}), nn.ReLU(), nn.Linear({width}, num_classes))
"""


def write_cifar10(root):
    for part in ("train", "test"):
        images = [pixels(32, 32, 3) for _ in range(20)]
        write_parquet(root / f"{part}.parquet", [encoded(image) for image in images], [i % 10 for i in range(20)])
    return Setup(model="vgg-mini", data="cifar10", data_dir=root, device="cpu")


def run(setup, root, **options):
    return experiment.run(setup, RANDOM, TRAINING, root=root, progress=False, **options)


def in_mynet(width):
    """A network in a file of the user's own, as a new process finds it."""
    with open("mynet.py", "w") as file:
        file.write(NETWORK.format(width=width))
    sys.modules.pop("mynet", None)
    sys.path_importer_cache.clear()
    return Setup(model="mynet:net", device="cpu")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield tmp_path
    sys.modules.pop("mynet", None)


def test_a_finished_run_on_another_copy_of_the_data_is_not_this_one(here):
    a, b = write_cifar10(here / "a"), write_cifar10(here / "b")
    place, result = run(a, here / "runs")
    with pytest.raises(ValueError, match=r"the data was \w+ \(18 \+ 2 \+ 20 examples\), and is .*another --out"):
        run(b, here / "runs")
    (here / "a").rename(here / "moved")
    assert run(replace(a, data_dir=here / "moved"), here / "runs")[1] == result
    assert run(replace(a, data_dir=here / "gone"), here / "runs")[1] == result  # the result stands
    with pytest.warns(UserWarning, match="not what the run was trained on: the data was"):
        evaluate_run(place.path, data_dir=here / "b", device="cpu")


def test_runs_of_one_seed_on_two_copies_are_two_curves_and_one_without_a_record_is_neither(here):
    setups = {name: write_cifar10(here / name) for name in ("a", "b")}
    folders = [run(replace(setups[name], seed=seed), here / name / "runs")[0] for name in "ab" for seed in (0, 1)]
    said = labels([row_of(place) for place in folders])
    assert said[0] == said[1] != said[2] == said[3] and all("random, data_digest=" in label for label in said)
    for place in folders[2:]:
        file = place.path / "environment.json"
        recorded = json.loads(file.read_text())
        del recorded["fingerprint"]
        file.write_text(json.dumps(recorded))
    assert labels([row_of(place) for place in folders]) == ["random"] * 4
    assert run(setups["a"], here / "b" / "runs")[0].path == folders[2].path  # of an earlier version


def test_an_image_gone_before_the_resume_is_no_leak(here):
    for part, count in (("train", 10), ("val", 2)):
        for name in ("a", "b"):
            for i in range(count):
                write_image(here / "pets" / part / name / f"{i:02}.png", pixels(8, 8, 3))
    setup = Setup(model="vgg-mini", data=str(here / "pets"), image_size=8, workers=0, device="cpu")
    before = data_sets.load(setup.data, image_size=8, workers=0)
    assert data_sets.load(setup.data, image_size=8, workers=0, seed=1).fingerprint.split()[0] in before.fingerprint
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(experiment, "train", interrupted)
        run(setup, here / "runs")
    (here / "pets" / "train" / "a" / "00.png").unlink()
    with pytest.raises(ValueError, match=r"\(18 \+ 2 \+ 4 examples\), and is \w+ \(17 \+ 2 \+ 4 examples\)"):
        run(setup, here / "runs")


def interrupted(*_, **__):
    raise KeyboardInterrupt


def test_a_checkpoint_knows_what_it_was_trained_on(tmp_path):
    place, data = folder(tmp_path), blobs()

    def stop():
        raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, Interrupted)):
        train_on(mlp(), blobs(before={(1, 0): stop}), folder=place)
    data.fingerprint = "others"
    with pytest.raises(ValueError, match=r"was trained on other data \(blobs of .*\) than are here \(others\)"):
        train_on(mlp(), data, folder=place)
    train_on(mlp(), blobs(), folder=place)


def test_a_network_that_was_rewritten_is_another(here):
    _, result = run(in_mynet(32), here / "runs")
    assert run(in_mynet(32), here / "runs")[1] == result
    with pytest.raises(ValueError, match=r"the network was \w+, and is \w+\): put that back"):
        run(in_mynet(16), here / "runs")
    measure(in_mynet(32), RANDOM, root=here / "measured", progress=False)
    setup = in_mynet(16)
    with pytest.raises(ValueError, match="the network was"):
        measure(setup, RANDOM, root=here / "measured", progress=False)


def test_what_is_written_while_the_mask_is_found_is_not_what_was_pruned(here, monkeypatch):
    setup, find = in_mynet(32), experiment.find_mask

    def find_and_edit(*arguments, **options):
        with open("mynet.py", "a") as file:
            file.write("# an afterthought")
        return find(*arguments, **options)

    monkeypatch.setattr(experiment, "find_mask", find_and_edit)
    place, result = run(setup, here / "runs")
    assert run(in_mynet(32), here / "runs") == (place, result)


def test_a_fingerprint_changes_no_folder(tmp_path):
    config = {"model": "vgg-mini", "seed": 0}
    place = RunFolder.open(tmp_path, "it", config, {"data": "1"})
    assert place.path == RunFolder.find(tmp_path, "it", config).path and place.fingerprint == {"data": "1"}
    assert RunFolder.open(tmp_path, "it", config, {"data": "2"}).fingerprint == {"data": "1"}
    assert place.unlike({"data": "1", "network": "new"}) == "" and place.unlike({}) == ""
