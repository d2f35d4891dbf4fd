"""Each layout, made in miniature; damaged and hostile files; and what is said when nothing is there."""

import gzip
import io
import json
import os
import pickle
import struct

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from skeletal.harness import data
from skeletal.harness.data import cifar, idx, parquet, sources
from skeletal.harness.data.specs import SPECS

RANDOM = np.random.default_rng(0)


def pixels(*shape):
    return RANDOM.integers(0, 256, shape, dtype=np.uint8)


def encoded(image, kind="PNG"):
    out = io.BytesIO()
    Image.fromarray(image).save(out, kind)
    return out.getvalue()


def write_image(path, image, kind="PNG"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(image, kind))


def write_parquet(path, blobs, labels, *, image="img", label="label", names=None):
    table = pa.table({image: [{"bytes": b, "path": None} for b in blobs], label: pa.array(labels, pa.int64())})
    if names:
        info = {"info": {"features": {label: {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def write_pickle(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=2))


def raw(split):
    return split.part.images.permute(0, 2, 3, 1).numpy()


# --- Hugging Face parquet ---


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


# --- CIFAR's pickles ---


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


# --- idx ---


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


# --- Tiny-ImageNet ---


def write_tiny(folder):
    wnids = [f"n{i:08d}" for i in range(200)]
    folder.mkdir(parents=True)
    (folder / "wnids.txt").write_text("\n".join(reversed(wnids)) + "\n")
    (folder / "words.txt").write_text(f"{wnids[1]}\tgoldfish, Carassius auratus\n")
    for i, wnid in enumerate(wnids):
        image = np.full((64, 64, 3), i, np.uint8)
        write_image(folder / "train" / wnid / "images" / f"{wnid}_0.JPEG", image, "JPEG")
    write_image(folder / "val" / "images" / "val_0.JPEG", np.full((64, 64), 7, np.uint8), "JPEG")
    (folder / "val" / "val_annotations.txt").write_text(f"val_0.JPEG\t{wnids[5]}\t0\t32\t44\t62\n")
    return wnids


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


# --- image folders ---


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("folder")
    for part, count in (("train", 4), ("val", 2)):
        for name in ("b", "a"):
            for i in range(count):
                write_image(root / part / name / f"{i}.png", pixels(40, 50, 3))
    return root


def same(ours, theirs):
    ours, theirs = list(ours), list(theirs)
    return len(ours) == len(theirs) and all(
        torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(ours, theirs, strict=True)
    )


def test_an_image_folder_keeps_the_contract(folder):
    loaded = data.load(str(folder), validation=0.25, workers=0)
    assert (len(loaded.train), len(loaded.validation), len(loaded.test)) == (6, 2, 4)
    assert loaded.classes == ("a", "b") and loaded.test.labels.tolist() == [0, 0, 1, 1]
    state = torch.get_rng_state()
    whole = loaded.train.batches(4, train=True, seed=1, epoch=2)
    first = list(whole)
    assert [tuple(x.shape) for x, _ in first] == [(4, 3, 224, 224), (2, 3, 224, 224)]
    assert first[0][0].dtype == torch.float32 and first[0][1].dtype == torch.int64
    assert same(first, whole)
    assert same(first[1:], loaded.train.batches(4, train=True, seed=1, epoch=2, start=1))
    assert not same(first, loaded.train.batches(4, train=True, seed=1, epoch=3))
    assert len(list(loaded.train.batches(4, train=True, drop_last=True))) == 1
    tested = torch.cat([y for _, y in loaded.test.batches(3, train=False)])
    assert torch.equal(tested, loaded.test.labels)
    assert torch.equal(state, torch.get_rng_state())


def test_equal_images_of_a_folder_are_cropped_each_in_its_own_way(tmp_path):
    image = pixels(40, 40, 3)
    for part, count in (("train", 4), ("val", 1)):
        for i in range(count):
            write_image(tmp_path / part / "a" / f"{i}.png", image)
    images, _ = next(iter(data.load(str(tmp_path), validation=0, workers=0).train.batches(4, train=True)))
    assert not any(torch.equal(images[i], images[j]) for i in range(4) for j in range(i))


def test_an_image_folder_is_tested_as_torchvision_does(folder):
    from torchvision import transforms as T

    loaded = data.load("imagenet", folder, workers=0)
    assert loaded.name == "imagenet" and loaded.num_classes == 2
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    transform = T.Compose([T.Resize(256), T.CenterCrop(224), T.ToTensor(), T.Normalize(mean, std)])
    with Image.open(folder / "val" / "a" / "0.png") as image:
        expected = transform(image)
    assert torch.equal(next(iter(loaded.test.batches(4, train=False)))[0][0], expected)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # Python 3.12 and later, of the loader's start
def test_workers_change_nothing(folder):
    state = torch.get_rng_state()
    here, there = (data.load(str(folder), workers=w).train.batches(3, train=True, seed=4) for w in (0, 2))
    assert same(here, there)
    assert torch.equal(state, torch.get_rng_state())


def test_a_damaged_image_folder_is_named(tmp_path):
    write_image(tmp_path / "train" / "a" / "0.png", pixels(40, 40, 3))
    with pytest.raises(data.DataNotFoundError, match="is not an image folder: train/<class>/ and val/<class>/"):
        data.load(str(tmp_path))
    write_image(tmp_path / "test" / "b" / "0.png", pixels(40, 40, 3))
    with pytest.raises(data.DataError, match="not in both: a, b"):
        data.load(str(tmp_path))
    (tmp_path / "test" / "b").rename(tmp_path / "test" / "a")
    (tmp_path / "test" / "a" / "0.png").write_bytes(b"no picture")
    with pytest.raises(data.DataError, match=r"0\.png: cannot decode the image"):
        list(data.load(str(tmp_path), workers=0).test.batches(1, train=False))
    (tmp_path / "test" / "a" / "0.png").unlink()
    with pytest.raises(data.DataError, match=r"test: .*for the classes a"):
        data.load(str(tmp_path))


# --- nothing there ---


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
    assert data.where("digits") == []


# --- read once ---


def test_a_set_is_read_once_until_a_file_changes(tmp_path, monkeypatch):
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
