"""Image folders too large for memory: decoded, cropped and resized in worker processes while training.

    <root>/train/<class>/*    and    <root>/val/<class>/*  or  <root>/test/<class>/*

`val` is the test set, as in the field (ImageNet's own test labels are secret); `test` is read where there is
no `val`. Classes are numbered as torchvision does, by sorted folder name. Transforms are those of PyTorch's
ImageNet example, which the paper adapts (appendix A): RandomResizedCrop(224) and flip to train, Resize(256)
and CenterCrop(224) to test.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from skeletal.harness.data.draws import batch_range, divide, order, seed_of
from skeletal.harness.data.errors import DataError
from skeletal.harness.data.pixels import FORMATS
from skeletal.harness.data.specs import IMAGENET_MEAN, IMAGENET_STD
from skeletal.harness.data.splits import Batch, Data

LOOKS_FOR = "an image folder: train/<class>/ and val/<class>/ (or test/<class>/)"
SIZE = 224


@dataclass(frozen=True)
class _Examples(Dataset[tuple[Tensor, int]]):
    files: list[Path]
    labels: Tensor
    train: bool
    seed: int
    epoch: int

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image
        from torchvision import transforms as T

        size = (
            [T.RandomResizedCrop(SIZE), T.RandomHorizontalFlip()] if self.train else [T.Resize(256), T.CenterCrop(SIZE)]
        )
        transform = T.Compose([*size, T.ToTensor(), T.Normalize(IMAGENET_MEAN, IMAGENET_STD)])
        try:
            with Image.open(self.files[index], formats=FORMATS) as image:
                pixels = image.convert("RGB")
        except Exception as error:  # Pillow raises nearly anything at a damaged file
            raise DataError(f"{self.files[index]}: cannot decode the image ({error})") from error
        # torchvision draws from the global generator: borrow it, and give it back as it was. Only that of the
        # CPU: `torch.manual_seed` would reseed the GPU's as well.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed_of("augment", self.seed, self.epoch, index))
            return transform(pixels), int(self.labels[index])


@dataclass(frozen=True)
class FolderBatches:
    """The batches `indices` of one pass. Iterating starts the workers, which stop with the iterator."""

    examples: _Examples
    members: Tensor
    batch_size: int
    indices: range
    workers: int

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[Batch]:
        if not self.indices:
            return
        shuffled = self.members[
            order(
                len(self.members),
                train=self.examples.train,
                seed=self.examples.seed,
                epoch=self.examples.epoch,
            )
        ]
        size = self.batch_size
        yield from DataLoader(
            self.examples,
            batch_sampler=[shuffled[k * size : (k + 1) * size].tolist() for k in self.indices],
            num_workers=self.workers,
            generator=torch.Generator(),  # else the loader draws its workers' seed from the global one
        )


@dataclass(frozen=True)
class FolderSplit:
    """The examples `members` of a list of files."""

    files: list[Path]
    all_labels: Tensor
    members: Tensor
    workers: int

    def __len__(self) -> int:
        return len(self.members)

    @property
    def labels(self) -> Tensor:
        """Return the class of every example: int64, `(len(self),)`."""
        return self.all_labels[self.members]

    def batches(
        self,
        batch_size: int,
        *,
        train: bool,
        seed: int = 0,
        epoch: int = 0,
        start: int = 0,
        drop_last: bool = False,
    ) -> FolderBatches:
        """Return one pass, as `Split.batches` says."""
        indices = batch_range(len(self), batch_size, start=start, drop_last=drop_last)
        examples = _Examples(self.files, self.all_labels, train, seed, epoch)
        return FolderBatches(examples, self.members, batch_size, indices, self.workers)


def _test_folder(root: Path) -> Path | None:
    return next((root / name for name in ("val", "test") if (root / name).is_dir()), None)


def _listed(folder: Path) -> tuple[list[Path], Tensor, list[str]]:
    from torchvision.datasets import ImageFolder

    try:
        found = ImageFolder(folder)
    except FileNotFoundError as error:  # no class folders, or one without images
        raise DataError(f"{folder}: {error}") from error
    return [Path(file) for file, _ in found.samples], torch.tensor(found.targets), found.classes


def find(root: Path, spec: object = None) -> Path | None:
    """Return `root` if it holds a training and a test folder."""
    return root if (root / "train").is_dir() and _test_folder(root) else None


def read(root: Path, *, name: str, validation: float, seed: int, workers: int) -> Data:
    """List the files; nothing is decoded yet.

    Raises:
        DataError: a class has no images, or training and test folders have other classes.

    """
    test_root = _test_folder(root)
    assert test_root is not None, "find() comes first"
    files, labels, classes = _listed(root / "train")
    test_files, test_labels, test_classes = _listed(test_root)
    if classes != test_classes:
        other = sorted(set(classes) ^ set(test_classes))
        raise DataError(
            f"{root}: {len(classes)} class folders in train, {len(test_classes)} in {test_root.name}; "
            f"not in both: {', '.join(other[:5])}{', ...' if len(other) > 5 else ''}"
        )
    kept, held_out = divide(len(files), validation, seed)
    return Data(
        name=name,
        num_classes=len(classes),
        channels=3,
        image_size=SIZE,
        classes=tuple(classes),
        train=FolderSplit(files, labels, kept, workers),
        validation=FolderSplit(files, labels, held_out, workers),
        test=FolderSplit(test_files, test_labels, torch.arange(len(test_files)), workers),
    )
