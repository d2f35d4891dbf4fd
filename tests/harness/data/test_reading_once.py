"""A set is read once, until one of its files changes."""

import numpy as np

from skeletal.harness import data
from skeletal.harness.data import parquet
from tests.harness.data.layouts import encoded, pixels, raw, write_image, write_parquet, write_tiny


def test_a_set_is_read_once_until_a_file_changes(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").symlink_to(tmp_path / "nowhere")  # is nobody's business
    for part in ("train", "test"):
        write_parquet(tmp_path / f"{part}.parquet", [encoded(pixels(32, 32, 3))] * 3, [0, 1, 2])
    reads = []
    read_part = parquet.read_part
    monkeypatch.setattr(parquet, "read_part", lambda *a: reads.append(1) or read_part(*a))
    first = data.load("cifar10", tmp_path, validation=0)
    second = data.load("cifar10", tmp_path, validation=0.34, seed=1)
    assert len(reads) == 2 and second.train.part is first.train.part and len(second.validation) == 1
    write_parquet(tmp_path / "test.parquet", [encoded(pixels(32, 32, 3))] * 2, [3, 4])
    assert data.load("cifar10", tmp_path).test.labels.tolist() == [3, 4]
    assert len(reads) == 4


def test_a_file_deep_in_tiny_imagenet_is_noticed(tmp_path):
    wnids = write_tiny(tmp_path / "tiny-imagenet-200")
    before = data.load("tiny-imagenet", tmp_path, validation=0)
    assert data.load("tiny-imagenet", tmp_path, validation=0).train.part is before.train.part
    file = tmp_path / "tiny-imagenet-200" / "train" / wnids[9] / "images" / f"{wnids[9]}_0.JPEG"
    write_image(file, np.full((64, 64, 3), 200, np.uint8), "JPEG")
    assert abs(raw(data.load("tiny-imagenet", tmp_path, validation=0).train)[9].mean() - 200) < 3
