"""CIFAR's pickles: read, refused unrun where they are hostile, named where they are damaged."""

import os
import pickle

import numpy as np
import pytest

from skeletal.core.progress import Lines, shown
from skeletal.harness import data
from skeletal.harness.data import cifar
from tests.harness.data.layouts import pixels, raw


def write_pickle(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=2))


def write_cifar10(root, images, labels):
    folder = root / "cifar-10-batches-py"
    flat = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    for file in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        write_pickle(folder / file, {b"data": flat, b"labels": labels, b"filenames": [b"a.png"] * len(images)})
    write_pickle(folder / "batches.meta", {"label_names": [f"class {i}" for i in range(10)]})
    return folder


def test_cifar10_pickles(tmp_path):
    images = pixels(2, 32, 32, 3)
    folder = write_cifar10(tmp_path, images, [3, 4])
    loaded = data.load("cifar10", tmp_path, validation=0)
    assert np.array_equal(raw(loaded.train)[:2], images)
    assert loaded.train.labels.tolist() == [3, 4] * 5 and loaded.test.labels.tolist() == [3, 4]
    assert loaded.classes[9] == "class 9"
    assert data.found(tmp_path)["cifar10"] == folder
    assert len(data.load("cifar10", folder).train) == 9


def test_cifar100_pickles(tmp_path):
    flat = pixels(1, 3072)
    for file in ("train", "test"):
        content = {"data": flat, "fine_labels": [42], "coarse_labels": [4]}
        write_pickle(tmp_path / "cifar100" / "cifar-100-python" / file, content)
    loaded = data.load("cifar100", tmp_path, validation=0)
    assert loaded.train.labels.tolist() == [42] and loaded.num_classes == len(loaded.classes) == 100


def test_a_pickle_of_python_2_is_read(tmp_path):
    """As the authors' files are, opcode by opcode: numpy's old module, and arrays whose bytes are a `str`."""
    content = pixels(2, 3)
    dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    state = b"(K\x01K\x02K\x03\x86" + dtype + b"\x89T\x06\x00\x00\x00" + content.tobytes() + b"tb"
    (tmp_path / "old").write_bytes(b"\x80\x02}(U\x04data" + array + state + b"U\x06labels](K\x03K\x04eu.")
    read = cifar.unpickle(tmp_path / "old")
    assert np.array_equal(read["data"], content) and read["labels"] == [3, 4]


class Hostile:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"data": Hostile(os.system, "touch hacked")}, r"asks for (posix|nt)\.system"),
        ({"data": Hostile(eval, "1")}, "eval"),
        ({"data": np.array([print], dtype=object)}, "expected uint8"),
        ({"data": np.zeros(3)}, "expected uint8"),
        ([1, 2], "holds a list, expected a dict"),
    ],
)
def test_a_hostile_pickle_is_refused_unrun(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    write_pickle(tmp_path / "data_batch_1", content)
    with pytest.raises(data.DataError, match=message):
        cifar.unpickle(tmp_path / "data_batch_1")
    assert not (tmp_path / "hacked").exists()


def test_damaged_cifar_files_are_named(tmp_path):
    folder = write_cifar10(tmp_path, pixels(2, 32, 32, 3), [3, 10])
    with pytest.raises(data.DataError, match=r"data_batch_1: label 10 of example 1"):
        data.load("cifar10", tmp_path)
    write_cifar10(tmp_path, pixels(2, 32, 32, 3), [3])
    with pytest.raises(data.DataError, match=r"data_batch_1: images of shape \(2, 3, 32, 32\), expected \(1,"):
        data.load("cifar10", tmp_path)
    write_pickle(folder / "data_batch_1", {"data": [1, 2]})
    with pytest.raises(data.DataError, match=r"data_batch_1: not a batch of cifar10"):
        data.load("cifar10", tmp_path)
    (folder / "data_batch_1").write_bytes(b"\x80\x02}q")
    with pytest.raises(data.DataError, match=r"data_batch_1: not a pickle"):
        data.load("cifar10", tmp_path)
    write_cifar10(tmp_path, pixels(2, 32, 32, 3), [3, 4])
    (folder / "data_batch_4").unlink()
    with pytest.raises(data.DataError, match=r"data_batch_4: missing"):
        data.load("cifar10", tmp_path)


@pytest.mark.parametrize("labels", [[3, 1.9], ["3", "4"], [3, None]])
def test_labels_are_whole_numbers(tmp_path, labels):
    write_cifar10(tmp_path, pixels(2, 32, 32, 3), labels)
    with pytest.raises(data.DataError, match=r"data_batch_1: not a batch of cifar10 .*whole numbers"):
        data.load("cifar10", tmp_path)


def test_a_part_of_the_set_is_told(tmp_path, capsys):
    write_cifar10(tmp_path, pixels(2, 32, 32, 3), [3, 4])
    with shown(True, Lines):
        data.load("cifar10", tmp_path)
    told = "is not the whole of cifar10: 10 classes, 10 images to train and 2 to test, not 10 classes, 50,000 images to"
    assert told in capsys.readouterr().err
