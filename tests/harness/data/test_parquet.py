"""Hugging Face's parquet files: shards in order, columns of any name, and damage that is named or left out."""

import numpy as np
import pytest

from skeletal.harness import data
from skeletal.harness.data import parquet, sources
from skeletal.harness.data.specs import SPECS
from tests.harness.data.layouts import encoded, pixels, raw, write_parquet


@pytest.mark.parametrize("below", ["", "data/"])
def test_parquet_shards_are_read_in_order(tmp_path, below):
    images, names = pixels(5, 32, 32, 3), [f"class {i}" for i in range(10)]
    blobs = [encoded(i) for i in images]
    for shard, part in enumerate((slice(0, 2), slice(2, 5))):
        path = tmp_path / f"{below}train-0000{shard}-of-00002.parquet"
        write_parquet(path, blobs[part], [7, 3, 0, 9, 1][part], names=names)
    write_parquet(tmp_path / f"{below}test-00000-of-00001.parquet", blobs[:1], [7], names=names)
    loaded = data.load("cifar10", tmp_path, validation=0)
    assert loaded.classes == tuple(names)
    assert loaded.train.labels.tolist() == [7, 3, 0, 9, 1]
    assert np.array_equal(raw(loaded.train), images)
    assert len(loaded.test) == 1
    (tmp_path / f"{below}train-00001-of-00002.parquet").unlink()
    with pytest.raises(data.DataError, match="one of 2 files according to its name, but there are 1"):
        data.load("cifar10", tmp_path)


def test_parquet_grey_images_fine_labels_and_validation_as_test(tmp_path):
    grey = pixels(3, 28, 28)
    for part in ("train", "validation"):
        write_parquet(tmp_path / f"f/{part}.parquet", [encoded(i) for i in grey], [0, 1, 2], image="image")
        colour = [encoded(pixels(32, 32, 3))]
        write_parquet(tmp_path / f"c/{part}.parquet", colour, [99], label="fine_label")
    fashion = data.load("fashion-mnist", tmp_path / "f", validation=0)
    assert np.array_equal(raw(fashion.test)[..., 0], grey)
    assert fashion.classes == tuple("0123456789")
    assert data.load("cifar100", tmp_path / "c", validation=0).test.labels.tolist() == [99]
    assert data.found(tmp_path / "c")["cifar10"] is None


@pytest.mark.parametrize(
    ("blob", "label", "message"),
    [
        (b"no picture", 0, r"train\.parquet, row 1: cannot decode the image"),
        (encoded(pixels(33, 32, 3)), 0, r"train\.parquet, row 1: 32x33 pixels, expected 32x32"),
        (encoded(pixels(32, 32, 3))[:200], 0, r"train\.parquet, row 1: cannot decode the image"),
        (encoded(pixels(32, 32, 3)), 10, r"label 10 of example 1 is not in 0\.\.9"),
        (encoded(pixels(32, 32, 3)), None, r"train\.parquet: a row without image bytes or without a label"),
    ],
)
def test_parquet_damage_is_named(tmp_path, blob, label, message):
    write_parquet(tmp_path / "train.parquet", [encoded(pixels(32, 32, 3)), blob], [0, label])
    with pytest.raises(data.DataError, match=message):
        parquet.read_part([tmp_path / "train.parquet"], SPECS["cifar10"])


def test_damaged_small_pictures_are_left_out_if_asked_for(tmp_path):
    for part in ("train", "test"):
        blobs = [encoded(pixels(32, 32, 3)), b"no picture", encoded(pixels(32, 32, 3))]
        write_parquet(tmp_path / f"{part}.parquet", blobs, [7, 8, 9])
    with pytest.raises(data.DataError, match=r"train\.parquet, row 1: cannot decode .* --skip-corrupt"):
        data.load("cifar10", tmp_path)
    with pytest.warns(UserWarning, match=r"skipped 1 of 3 images that cannot be decoded, the first: .*row 1"):
        loaded = data.load("cifar10", tmp_path, validation=0, skip_corrupt=True)
    assert loaded.train.labels.tolist() == loaded.test.labels.tolist() == [7, 9]
    with pytest.raises(data.DataError, match="cannot decode"):  # what was read before does not hide it
        data.load("cifar10", tmp_path)


def test_a_file_that_is_no_parquet_is_named_by_load_and_passed_over_by_found(tmp_path):
    for part in ("train", "test"):
        (tmp_path / f"{part}.parquet").write_text("no parquet")
    with pytest.raises(data.DataError, match=r"train\.parquet: not a parquet file"):
        data.load("cifar10", tmp_path)
    assert data.found(tmp_path)["cifar10"] is None


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label": "fine_label"}, r"has the files, but no label column 'label': only img, fine_label"),
        ({"image": "picture"}, r"has the files, but none of the image columns img, image: only picture, label"),
        ({"names": ["cat", "dog"]}, r"has the files, but 2 classes, where cifar10 has 10"),
    ],
)
def test_parquet_files_of_another_set_are_told_from_none(tmp_path, columns, message):
    for part in ("train", "test"):
        write_parquet(tmp_path / f"{part}.parquet", [encoded(pixels(32, 32, 3))], [0], **columns)
    assert sources.found(tmp_path)["cifar10"] is None
    with pytest.raises(data.DataNotFoundError, match=message) as error:
        data.load("cifar10", data_dir=tmp_path)
    assert "is not here" not in str(error.value)


def test_a_second_copy_of_a_numbered_file_is_refused(tmp_path):
    blobs = [encoded(i) for i in pixels(4, 32, 32, 3)]
    for name in ("train-00000-of-00001", "train-00000-of-00001 (1)", "test-00000-of-00001"):
        write_parquet(tmp_path / f"{name}.parquet", blobs, [0, 1, 2, 3])
    with pytest.raises(data.DataError, match=r"train-00000-of-00001 \(1\)\.parquet: other files .* a second copy"):
        data.load("cifar10", tmp_path)


@pytest.mark.parametrize("labels, kind", [([0.7, 1.7], "double"), (["0", "1"], "string")])
def test_labels_that_are_no_whole_numbers_are_refused(tmp_path, labels, kind):
    for part in ("train", "test"):
        write_parquet(tmp_path / f"{part}.parquet", [encoded(i) for i in pixels(2, 32, 32, 3)], labels, kind=kind)
    with pytest.raises(data.DataError, match=f"train.parquet: labels have to be whole numbers; .* of type {kind}"):
        data.load("cifar10", tmp_path)
