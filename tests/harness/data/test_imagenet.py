"""The ImageNet pipeline, on a folder of its shape: a few classes by wnid, JPEGs of all sizes, grey and CMYK ones."""

import signal
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from skeletal.core.progress import Lines, shown
from skeletal.harness import data
from skeletal.harness.config import PRESETS, Pruning, Setup, Training, resolve
from skeletal.harness.console.interrupt import Interrupted
from skeletal.harness.data.folder import FolderSplit
from skeletal.harness.runs import experiment, finding
from skeletal.harness.runs.load import load_run, shapes_of
from skeletal.harness.runs.review import diagnose_mask
from skeletal.harness.store.folders import RunFolder
from skeletal.harness.training.rate import milestones
from skeletal.harness.training.train import train

WNIDS = ["n02119789", "n01440764", "n03000684"]  # not in order
fork = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # Python 3.12 and later, of the loader's start


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("imagenet")
    random = np.random.default_rng(0)
    for part, each in (("train", 7), ("val", 3)):
        for wnid in WNIDS:
            folder = root / part / wnid
            folder.mkdir(parents=True)
            for i in range(each):
                height, width = random.integers(30, 320, 2)
                pixels = random.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
                image = Image.fromarray(pixels).resize((int(width), int(height)))
                image = image.convert({0: "L", 1: "CMYK"}.get(i, "RGB"))
                image.save(folder / f"{wnid}_{i}.JPEG", "JPEG")
    return root


def load(root, **options):
    return data.load("imagenet", root, validation=0, **{"workers": 0, **options})


def tiny():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 7, stride=8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)
    )  # fmt: skip


def same(ours, theirs):
    return all(torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(ours, theirs, strict=True))


def test_classes_are_numbered_as_torchvision_does(root):
    from torchvision.datasets import ImageFolder

    loaded, theirs = load(root), ImageFolder(root / "train")
    assert loaded.classes == tuple(theirs.classes) == tuple(sorted(WNIDS))
    assert loaded.train.labels.tolist() == theirs.targets
    assert [str(loaded.train.listing.file(i)) for i in range(21)] == [file for file, _ in theirs.samples]


@pytest.mark.parametrize("kind, mode", [(0, "L"), (1, "CMYK"), (2, "RGB")])
def test_grey_and_cmyk_images_become_the_colours_torchvision_makes_of_them(root, kind, mode):
    from torchvision import transforms as T
    from torchvision.datasets.folder import default_loader

    file = root / "val" / sorted(WNIDS)[0] / f"{sorted(WNIDS)[0]}_{kind}.JPEG"
    with Image.open(file) as image:
        assert image.mode == mode
    normalized = T.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    transform = T.Compose([T.Resize(256), T.CenterCrop(224), T.ToTensor(), normalized])
    images, _ = next(iter(load(root).test.batches(9, train=False)))
    assert torch.equal(images[kind], transform(default_loader(file)))


def test_the_paper_s_recipe():
    training, pruning = resolve(Training(), "imagenet"), resolve(Pruning(), "imagenet")
    assert (training.epochs, training.batch_size, training.lr, training.weight_decay) == (90, 256, 0.1, 1e-4)
    assert milestones(training) == [30, 60]
    assert (pruning.batches_per_step, pruning.prune_batch_size, pruning.steps) == (40, 256, 60)
    assert set(PRESETS["imagenet"]) >= {"momentum", "density"}


@fork
@pytest.mark.parametrize("workers", [0, 2])
def test_a_training_stopped_in_the_middle_of_an_epoch_goes_on_with_the_very_next_images(root, tmp_path, workers):
    training = Training(
        epochs=2,
        batch_size=4,
        lr=0.01,
        momentum=0.9,
        weight_decay=1e-4,
        milestones=(0.5,),
        decay="steps",
        engine="dense",
    )
    loaded = load(root, workers=workers)

    def trained(model, folder):
        train(model, loaded, training, folder=RunFolder.open(folder, "run", {}), device="cpu", progress=False)
        return model.state_dict()

    straight = trained(tiny(), tmp_path / "straight")
    model = tiny()
    calls = []
    hook = model.register_forward_pre_hook(lambda *_: calls.append(1) or (stop() if len(calls) == 3 else None))
    with pytest.raises(Interrupted, match="step 3 of 6"):
        trained(model, tmp_path / "cut")
    hook.remove()
    for name, value in trained(tiny(), tmp_path / "cut").items():
        assert torch.equal(value, straight[name])


def stop():
    signal.raise_signal(signal.SIGINT)


def test_a_stream_can_be_taken_up_anywhere(root):
    stream = data.Stream(load(root).train, 4, seed=1)
    whole = list(islice(stream, 12))
    for first in (0, 3, 5, 7, 11):
        assert same(islice(stream.starting_at(first), 12 - first), whole[first:])
    balanced = data.BalancedStream(load(root).train, 6, 0, 3)
    assert same(islice(balanced.starting_at(2), 1), list(islice(balanced, 3))[2:])


def test_a_network_is_pruned_on_it_in_micro_batches(root):
    setup = Setup(data=str(root), model="any", device="cpu", workers=0)
    pruning = resolve(Pruning(method="grasp", density=0.5, batches_per_step=3, prune_batch_size=5), "imagenet")
    masks = [
        finding.find_mask(
            tiny().double(), doubled(load(root)), setup, replace(pruning, micro_batch=size), progress=False
        )
        for size in (None, 2)
    ]
    assert masks[0] == masks[1] and masks[1].metadata["micro_batch"] == 2


def doubled(loaded):
    class Doubles:
        labels = loaded.train.labels

        def __len__(self):
            return len(loaded.train)

        def batches(self, *arguments, **options):
            return ((x.double(), y) for x, y in loaded.train.batches(*arguments, **options))

    return replace(loaded, train=Doubles())


def test_parts_of_ranks_make_up_the_batches(root):
    whole = load(root).train
    parts = [replace(whole, share=data.Share(rank, 2)).batches(4, train=True, seed=3) for rank in (0, 1)]
    for (images, labels), *of_ranks in zip(whole.batches(4, train=True, seed=3), *parts, strict=True):
        for rank, (x, y) in enumerate(of_ranks):
            assert torch.equal(x, images[rank::2]) and torch.equal(y, labels[rank::2])
    assert len(of_ranks[1][1]) == 0 and of_ranks[1][0].shape == (0, 3, 224, 224)  # 21 images: one is left for two


def test_a_million_files_would_not_be_a_million_objects(root):
    listing = load(root).train.listing
    assert listing.names.dtype.kind == "S" and listing.names.nbytes == 21 * max(map(len, listing.names.tolist()))


# --- damaged images ---


@pytest.fixture
def damaged(root, tmp_path):
    for part in ("train", "val"):
        for wnid in WNIDS:
            for file in (root / part / wnid).iterdir():
                copy = tmp_path / part / wnid / file.name
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(file.read_bytes())
    (tmp_path / "train" / WNIDS[1] / f"{WNIDS[1]}_4.JPEG").write_bytes(b"no picture")
    cut = tmp_path / "val" / WNIDS[0] / f"{WNIDS[0]}_2.JPEG"
    cut.write_bytes(cut.read_bytes()[:300])
    return tmp_path


@fork
@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_named(damaged, workers):
    loaded = load(damaged, workers=workers)
    message = rf"^[^\n]*{WNIDS[1]}_4\.JPEG: cannot decode the image \([^\n]*\); mend or remove it, .*--skip-corrupt$"
    with pytest.raises(data.DataError, match=message):
        list(loaded.train.batches(4, train=True))
    with pytest.raises(data.DataError, match=rf"{WNIDS[0]}_2\.JPEG: cannot decode .*--skip-corrupt"):
        list(loaded.test.batches(4, train=False))


@fork
@pytest.mark.parametrize("workers", [0, 2])
def test_or_left_out_and_counted(damaged, workers):
    loaded = load(damaged, workers=workers, skip_corrupt=True)
    with pytest.warns(UserWarning, match=rf"skipped 1 of 21 images that cannot be decoded, the first: .*{WNIDS[1]}_4"):
        sizes = [len(y) for _, y in loaded.train.batches(4, train=True)]
    assert sum(sizes) == 20 and len(sizes) == 6
    with pytest.warns(UserWarning, match="skipped 1 of 9"):
        assert sum(len(y) for _, y in loaded.test.batches(1, train=False)) == 8


@pytest.mark.filterwarnings("ignore:skipped 1 of")
def test_training_goes_on_without_it_even_where_a_batch_is_empty(damaged):
    training = resolve(Training(epochs=1, batch_size=1, lr=0.01, milestones=(), engine="dense"), "quick")
    result = train(tiny(), load(damaged, skip_corrupt=True), training, device="cpu", progress=False)
    assert (result.train.examples, result.test.examples) == (20, 8)


def test_skipping_is_part_of_a_run_s_settings_only_where_it_is_asked_for():
    assert "skip_corrupt" not in experiment.identity(Setup())
    assert experiment.identity(Setup(skip_corrupt=True))["skip_corrupt"] is True
    assert "micro_batch" not in experiment.identity(Pruning()) and "sync_bn" not in experiment.identity(Training())


def test_a_run_on_a_part_of_imagenet_is_read_back_with_as_many_classes(root, tmp_path):
    setup = Setup(model="lenet5", data="imagenet", data_dir=root, image_size=12, workers=0, device="cpu")
    pruning = resolve(Pruning(method="random", density=0.5, prune_batch_size=8), "quick")
    training = resolve(Training(epochs=1, batch_size=8, engine="dense"), "quick")
    folder, _ = experiment.run(setup, pruning, training, root=tmp_path, progress=False)
    images = torch.randn(1, 3, 12, 12)
    assert load_run(folder.path, root).network(images).shape == (1, 3)
    assert diagnose_mask(folder.path, data_dir=root)[1].connected
    everything = shapes_of(replace(setup, data_dir=tmp_path / "nowhere"))
    assert (everything.num_classes, everything.image_size) == (1000, 12)


def test_a_split_for_a_gpu_pins_its_batches(root):
    split = data.resident(load(root).train, torch.device("cuda"))
    assert isinstance(split, FolderSplit) and split.device.type == "cuda"


def test_another_image_size_is_in_the_same_proportion_and_what_there_is_is_said(root, capsys):
    from torchvision import transforms as T
    from torchvision.datasets.folder import default_loader

    with shown(True, Lines):
        loaded = load(root, image_size=56)
    said = capsys.readouterr().err
    assert said.startswith(f"{root}: 3 classes, 21 images to train and 9 to test, ")
    assert " pixels; each is cropped and resized to 56x56\n" in said
    assert said.endswith(
        f"{root} is not the whole of imagenet: 3 classes, 21 images to train and 9 to test, not 1,000 classes,"
        " 1,281,167 images to train and 50,000 to test; results are not those of imagenet\n"
    )
    with shown(True, Lines):
        load(root)
    assert "224x224, unless --image-size says so" in capsys.readouterr().err
    sizes = []
    for i in range(21):
        with Image.open(loaded.train.listing.file(i)) as image:
            sizes.append(image.size)
    smallest, largest = min(sizes, key=lambda s: s[0] * s[1]), max(sizes, key=lambda s: s[0] * s[1])
    assert "{}x{} to {}x{} pixels".format(*smallest, *largest) in said
    assert loaded.image_size == 56
    images, _ = next(iter(loaded.test.batches(9, train=False)))
    normalized = T.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    transform = T.Compose([T.Resize(64), T.CenterCrop(56), T.ToTensor(), normalized])
    assert torch.equal(images[2], transform(default_loader(loaded.test.listing.file(2))))
    images, _ = next(iter(loaded.train.batches(4, train=True)))
    assert images.shape == (4, 3, 56, 56)
