"""Tiny-ImageNet's folders: labels by wnid, and files that are no images of the set."""

import numpy as np
import pytest

from skeletal.harness import data
from tests.harness.data.layouts import pixels, raw, write_image, write_tiny


def test_tiny_imagenet_folders(tmp_path):
    wnids = write_tiny(tmp_path / "tiny-imagenet-200")
    loaded = data.load("tiny-imagenet", tmp_path, validation=0)
    assert loaded.classes[:2] == (wnids[0], "goldfish") and loaded.num_classes == 200
    assert loaded.train.labels.tolist() == list(range(200))
    assert np.abs(raw(loaded.train).mean((1, 2, 3)) - np.arange(200)).max() <= 2
    assert loaded.test.labels.tolist() == [5] and raw(loaded.test).shape == (1, 64, 64, 3)
    annotations = tmp_path / "tiny-imagenet-200" / "val" / "val_annotations.txt"
    annotations.write_text("../../secret.JPEG\tn00000005\n")
    with pytest.raises(data.DataError, match=r"val_annotations\.txt, line 1"):
        data.load("tiny-imagenet", tmp_path)


def test_tiny_imagenet_s_other_files_are_no_images(tmp_path):
    root = tmp_path / "tiny-imagenet-200"
    wnids = write_tiny(root)
    (root / "train" / wnids[0] / f"{wnids[0]}_boxes.txt").write_text(f"{wnids[0]}_0.JPEG\t0\t0\t5\t5\n")
    (root / "test" / "images").mkdir(parents=True)
    write_image(root / "test" / "images" / "test_0.JPEG", pixels(64, 64, 3), "JPEG")
    loaded = data.load("tiny-imagenet", tmp_path, validation=0)
    assert (len(loaded.train), len(loaded.test)) == (200, 1)
    assert loaded.classes[:3] == (wnids[0], "goldfish", wnids[2])  # where words.txt has no line, the wnid
    (root / "train" / wnids[3] / "images" / f"{wnids[3]}_0.JPEG").write_bytes(b"no picture")
    with pytest.raises(data.DataError, match=rf"{wnids[3]}_0\.JPEG: cannot decode the image"):
        data.load("tiny-imagenet", tmp_path)


def test_a_class_that_was_not_unpacked_is_named(tmp_path):
    root = tmp_path / "tiny-imagenet-200"
    wnids = write_tiny(root)
    images = root / "train" / wnids[3] / "images"
    (images / f"{wnids[3]}_0.JPEG").rename(images / f"{wnids[3]}_0.jpeg")
    assert len(data.load("tiny-imagenet", tmp_path, validation=0).train) == 200
    (images / f"{wnids[3]}_0.jpeg").unlink()
    with pytest.raises(data.DataError, match=f"{wnids[3]}/images: no images of this class"):
        data.load("tiny-imagenet", tmp_path)
