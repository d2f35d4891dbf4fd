"""A user's own folder of images: the contract of a split, torchvision's test images, and damage that is named."""

from multiprocessing import active_children

import pytest
import torch
from PIL import Image

from skeletal.harness import data
from tests.harness.data.layouts import pixels, write_image


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


def test_a_folder_that_has_moved_is_found_by_its_new_place(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for place in (folder, folder.parent):
        assert len(data.load(folder.name, place, workers=0).test) == 4
    with pytest.raises(data.DataNotFoundError, match="no data set and no folder"):
        data.load(folder.name, tmp_path, workers=0)


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


def test_with_data_dir_a_folder_is_looked_for_nowhere_else(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(folder.parent)
    other = tmp_path / "moved" / folder.name
    for part in ("train", "val"):
        write_image(other / part / "c" / "0.png", pixels(40, 40, 3))
    for name in (folder.name, str(folder)):
        for place in (other, other.parent):
            assert data.load(name, place, workers=0).classes == ("c",)
        for place in (tmp_path, tmp_path / "nowhere"):
            with pytest.raises(data.DataNotFoundError, match=rf"looked in {place}/{folder.name} \(no such folder\)"):
                data.load(name, place, workers=0)


def test_files_that_are_passed_over_are_counted(folder, tmp_path, capsys):
    from skeletal.core.progress import Lines, shown

    for part in ("train", "val"):
        write_image(tmp_path / part / "a" / "0.png", pixels(40, 40, 3))
    for name in ("0.JFIF", "0.gif", "1.gif", "none", ".hidden"):
        write_image(tmp_path / "train" / "a" / name, pixels(40, 40, 3), "JPEG")
    with shown(True, Lines):
        loaded = data.load(str(tmp_path), validation=0, workers=0)
        data.load(str(folder), workers=0)
    assert len(loaded.train) == 2 and len(list(loaded.train.batches(2, train=True))) == 1  # .jfif is a JPEG, too
    told = [line for line in capsys.readouterr().err.splitlines() if "passed over" in line]
    assert told == [f"{tmp_path / 'train'}: passed over 3 files: 2 .gif, 1 without extension"]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_worker_that_is_killed_is_explained_where_the_next_batch_is_asked_for(folder):
    batches = iter(data.load(str(folder), validation=0, workers=1).train.batches(1, train=True))
    next(batches)
    for worker in active_children():
        worker.kill()
        worker.join()
    with pytest.raises(ChildProcessError, match=r"lack of memory or of /dev/shm: --workers 0 .*resumes"):
        list(batches)
