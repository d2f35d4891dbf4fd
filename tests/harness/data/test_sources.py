"""Where a set is looked for, what is said when nothing is there, and how it is fetched."""

from pathlib import Path

import pytest

from skeletal.engine.host.cache import one_at_a_time, remember, remembered
from skeletal.harness import data
from skeletal.harness.data import sources
from skeletal.harness.data.specs import SPECS


@pytest.mark.parametrize("name", [n for n in data.NAMES if n != "digits"])
def test_missing_data_says_where_and_how(tmp_path, monkeypatch, name):
    monkeypatch.setattr(sources, "DEBIAN_FASHION_MNIST", tmp_path / "debian")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for data_dir in (None, tmp_path / "elsewhere"):
        with pytest.raises(FileNotFoundError) as error:
            data.load(name, data_dir)
        message = str(error.value)
        assert isinstance(error.value, data.DataNotFoundError)
        assert all(str(place) in message for place in data.where(name, data_dir))
        assert SPECS[name].get in message and "--data-dir" in message
    assert data.found() == {"digits": "embedded", **{n: None for n in data.NAMES if n != "digits"}}


def test_an_unknown_name_is_answered_with_the_nearest(tmp_path):
    with pytest.raises(data.DataNotFoundError, match=r"'cifar11'\. Did you mean cifar10\?"):
        data.load("cifar11")


def test_data_dir_comes_before_its_subfolder(tmp_path):
    assert data.where("cifar10", tmp_path) == [tmp_path, tmp_path / "cifar10"]
    assert data.where("cifar10", str(tmp_path)) == [tmp_path, tmp_path / "cifar10"]
    assert data.where("digits") == []


def test_only_image_folders_have_another_size():
    assert data.load("digits", image_size=8).image_size == 8
    with pytest.raises(ValueError, match="images of digits are 8x8, and stay so: --image-size"):
        data.load("digits", image_size=16)


def test_what_is_not_here_is_downloaded_through_torchvision(tmp_path, monkeypatch, capsys):
    from torchvision import datasets

    calls = []
    monkeypatch.setattr(datasets, "CIFAR10", lambda root, download: (calls.append((root, download)), print("100%")))
    data.fetch("CIFAR10", tmp_path)
    assert calls == [(str(tmp_path), True)] and capsys.readouterr().out == ""
    (tmp_path / "cifar-10-batches-py").mkdir()
    for part in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]:
        (tmp_path / "cifar-10-batches-py" / part).touch()
    data.fetch("cifar10", tmp_path)
    data.fetch("digits", tmp_path)
    assert len(calls) == 1


def test_without_a_network_a_download_tells_how_to_get_it_otherwise(tmp_path, monkeypatch):
    from urllib.error import URLError

    from torchvision import datasets

    def no_network(root, download):
        raise URLError("no route to host")

    monkeypatch.setattr(datasets, "FashionMNIST", no_network)
    monkeypatch.chdir(tmp_path)
    for name, said in {
        "fashion-mnist": "cannot be downloaded: .*no route to host.*\n.*To get it: apt-get",
        "imagenet": "torchvision does not download imagenet.*To get it: register",
    }.items():
        with pytest.raises(data.DataNotFoundError, match=f"(?s){said}"):
            data.fetch(name, tmp_path / "nowhere")


def test_a_user_may_have_no_home(monkeypatch, tmp_path):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert data.where("cifar10") == [Path("data/cifar10"), Path("data")]
    remember("something", {"is": 1})
    assert remembered("something") is None
    with one_at_a_time("something"):
        pass
