"""Fashion-MNIST's idx files, packed or not, where downloads and Debian put them."""

import gzip
import struct

import numpy as np
import pytest

from skeletal.harness import data
from skeletal.harness.data import idx, sources
from tests.harness.data.layouts import pixels, raw


def write_idx(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    content = header + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_fashion(folder, suffix, images, labels):
    for part in ("train", "t10k"):
        write_idx(folder / f"{part}-images-idx3-ubyte{suffix}", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte{suffix}", labels)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("below", ["FashionMNIST/raw", "fashion-mnist", ""])
def test_fashion_mnist_idx(tmp_path, suffix, below):
    images = pixels(4, 28, 28)
    write_fashion(tmp_path / below, suffix, images, np.array([0, 9, 5, 5], np.uint8))
    loaded = data.load("fashion-mnist", tmp_path, validation=0.25)
    assert (len(loaded.train), len(loaded.validation)) == (3, 1)
    assert np.array_equal(raw(loaded.test)[..., 0], images)
    assert loaded.test.labels.tolist() == [0, 9, 5, 5] and loaded.classes[9] == "ankle boot"


def test_debians_folder_is_found_last(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "DEBIAN_FASHION_MNIST", tmp_path / "debian")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    write_fashion(tmp_path / "debian", ".gz", pixels(1, 28, 28), np.zeros(1, np.uint8))
    assert data.found()["fashion-mnist"] == data.where("fashion-mnist")[-1] == tmp_path / "debian"
    write_fashion(tmp_path / "data" / "FashionMNIST" / "raw", "", pixels(2, 28, 28), np.zeros(2, np.uint8))
    assert len(data.load("fashion-mnist").test) == 2


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\0\x08",
        struct.pack(">HBB2I", 0, 8, 2, 2, 2) + b"abc",
        struct.pack(">HBB2I", 0, 8, 2, 2, 2) + b"abcde",
        struct.pack(">HBBI", 0, 9, 1, 1) + b"a",
        struct.pack(">HBB3I", 0, 8, 3, 2**31, 2**31, 2**31),
    ],
)
def test_a_damaged_idx_file_is_named(tmp_path, content):
    for file, stored in (("damaged", content), ("damaged.gz", gzip.compress(content)), ("cut.gz", b"\x1f\x8b\x08")):
        (tmp_path / file).write_bytes(stored)
        with pytest.raises(data.DataError, match=f"{file}: not an idx file"):
            idx.read_idx(tmp_path / file)
