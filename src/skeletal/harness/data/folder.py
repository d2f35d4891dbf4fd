"""Image folders too large for memory: decoded, cropped and resized in worker processes while training.

    <root>/train/<class>/*    and    <root>/val/<class>/*  or  <root>/test/<class>/*

`val` is the test set, as in the field (ImageNet's own test labels are secret); `test` is read where there is
no `val`. Classes are numbered as torchvision does, by sorted folder name. Transforms are those of PyTorch's
ImageNet example, which the paper adapts (appendix A): RandomResizedCrop(224) and flip to train, Resize(256)
and CenterCrop(224) to test; for another size than 224 in the same proportion.
"""

import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from skeletal.core.extras import extra
from skeletal.core.progress import say
from skeletal.harness.data.draws import batch_range, divide, order, seed_of
from skeletal.harness.data.errors import DataError
from skeletal.harness.data.pixels import FORMATS, cannot_decode, in_eight_bits, warn_of_skipped
from skeletal.harness.data.specs import IMAGENET_MEAN, IMAGENET_STD
from skeletal.harness.data.splits import WHOLE, Batch, Data, Share, digest_of

LOOKS_FOR = "an image folder: train/<class>/ and val/<class>/ (or test/<class>/)"
SIZE = 224
"""of an image, in pixels, where no other is asked for"""
LOOKED_AT = 50
"""number of images whose size is checked, to tell the user"""


@dataclass(frozen=True)
class Listing:
    """The image files of a folder. One array each, so that a million files are not a million objects per worker."""

    names: np.ndarray  # (N,) bytes
    labels: Tensor  # (N,) int64

    def file(self, index: int) -> Path:
        """The path of an image."""
        return Path(os.fsdecode(self.names[index]))

    @property
    def digest(self) -> str:
        """Of all names below the folder, all labels and about 1,000 file sizes."""
        root = os.path.commonpath([self.names[0], self.names[-1]])
        names = b"\n".join(name.removeprefix(root) for name in self.names.tolist())
        looked_at = map(self.file, range(0, len(self.names), max(1, len(self.names) // 1000)))
        sizes = [file.stat().st_size for file in looked_at if file.exists()]
        return digest_of(names, self.labels.numpy().tobytes(), repr(sizes).encode())


@dataclass(frozen=True)
class Damaged:
    """A file that is not an image. Not raised in a worker, which would bury the message in a traceback of its own."""

    file: Path
    reason: str


Decoded = tuple[Tensor, int] | Damaged
"""an image with its label, or why there is none"""


@dataclass(frozen=True)
class _Examples(Dataset[Decoded]):
    listing: Listing
    train: bool
    seed: int
    epoch: int
    size: int

    def __getitem__(self, index: int) -> Decoded:
        with extra("run"):
            from PIL import Image
            from torchvision import transforms as T

        if self.train:
            sized = [T.RandomResizedCrop(self.size), T.RandomHorizontalFlip()]
        else:
            sized = [T.Resize(round(self.size * 256 / 224)), T.CenterCrop(self.size)]
        transform = T.Compose([*sized, T.ToTensor(), T.Normalize(IMAGENET_MEAN, IMAGENET_STD)])
        file = self.listing.file(index)
        try:
            with Image.open(file, formats=FORMATS) as image:
                pixels = in_eight_bits(image, "RGB")  # grey and CMYK ones, of which ImageNet has some, too
        except Exception as error:  # Pillow raises nearly anything on a damaged file
            return Damaged(file, str(error))
        # torchvision draws from the global generator: borrow it, and give it back as it was. Only that of the
        # CPU: `torch.manual_seed` would reseed the GPU's as well.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed_of("augment", self.seed, self.epoch, index))
            return transform(pixels), int(self.listing.labels[index])


def _collate(size: int, decoded: list[Decoded]) -> tuple[Tensor, Tensor, list[Damaged]]:
    """Images, labels, and the files without; a rank's part of a small last batch may be empty."""
    good = [example for example in decoded if not isinstance(example, Damaged)]
    images = torch.stack([image for image, _ in good]) if good else torch.empty(0, 3, size, size)
    labels = torch.tensor([label for _, label in good], dtype=torch.int64)
    return images, labels, [example for example in decoded if isinstance(example, Damaged)]


def _leave_interrupts_to_the_parent(worker: int) -> None:
    """Ctrl-C in a terminal goes to all processes; the one that waits for the others ends them, without a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _explained(loader: "DataLoader[Decoded]") -> Iterator[tuple[Tensor, Tensor, list[Damaged]]]:
    """What the loader gives; a worker that has been ended is an error of ours, and comes from here alone."""
    on_main = threading.current_thread() is threading.main_thread()  # Python has handlers nowhere else
    before = signal.getsignal(signal.SIGCHLD) if on_main and hasattr(signal, "SIGCHLD") else None
    batches = iter(loader)
    if before is not None:
        # torch's handler raises wherever this process is when a worker ends; the loader notices by itself, too.
        signal.signal(signal.SIGCHLD, before)
    try:
        yield from batches
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise ChildProcessError(
            f"a process that decodes images was ended ({error}), probably for lack of memory or of /dev/shm:"
            " --workers 0 decodes without any, and docker's --shm-size gives more; the same command resumes"
        ) from error


@dataclass(frozen=True)
class FolderBatches:
    """The batches `indices` of one pass. Iterating starts the workers, which stop with the iterator."""

    split: "FolderSplit"
    batch_size: int
    indices: range
    train: bool
    seed: int
    epoch: int

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[Batch]:
        if not self.indices:
            return
        split, size = self.split, self.batch_size
        members = split.members[order(len(split), train=self.train, seed=self.seed, epoch=self.epoch)]
        loader = DataLoader(
            _Examples(split.listing, self.train, self.seed, self.epoch, split.size),
            batch_sampler=[split.share.of(members[k * size : (k + 1) * size].tolist()) for k in self.indices],
            collate_fn=partial(_collate, split.size),
            num_workers=split.workers,
            pin_memory=split.device.type == "cuda",
            worker_init_fn=_leave_interrupts_to_the_parent,
            generator=torch.Generator(),  # else the loader draws its workers' seed from the global one
        )
        skipped: list[Damaged] = []
        try:
            for images, labels, damaged in _explained(loader):
                if damaged and not split.skip_corrupt:
                    raise cannot_decode(damaged[0].file, damaged[0].reason)
                skipped += damaged
                yield images, labels
        finally:
            warn_of_skipped([str(one.file) for one in skipped], len(split))


@dataclass(frozen=True)
class FolderSplit:
    """The examples `members` of a list of files."""

    listing: Listing
    members: Tensor
    workers: int
    size: int = SIZE
    """of an image as it comes out, in pixels"""
    skip_corrupt: bool = False
    """leave out, with a warning that counts them, the images that cannot be decoded; batches get smaller"""
    device: torch.device = torch.device("cpu")  # noqa: RUF009 (immutable)
    """where batches are going to"""
    share: Share = WHOLE
    """which examples of each batch are decoded"""

    def __len__(self) -> int:
        return len(self.members)

    @property
    def labels(self) -> Tensor:
        """Return the class of every example: int64, `(len(self),)`."""
        return self.listing.labels[self.members]

    @property
    def digest(self) -> str:
        """Of all files, whatever is a member: see `Listing.digest`."""
        return self.listing.digest

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
        return FolderBatches(self, batch_size, indices, train, seed, epoch)


def _test_folder(root: Path) -> Path | None:
    return next((root / name for name in ("val", "test") if (root / name).is_dir()), None)


def _listed(folder: Path) -> tuple[Listing, list[str]]:
    with extra("run"):
        from torchvision.datasets import ImageFolder
        from torchvision.datasets.folder import IMG_EXTENSIONS

    extensions = *IMG_EXTENSIONS, ".jfif"
    passed_over = Counter[str]()

    def is_image(path: str) -> bool:
        if path.lower().endswith(extensions):
            return True
        name = os.path.basename(path)
        if not name.startswith("."):
            passed_over[os.path.splitext(name)[1].lower() or "without extension"] += 1
        return False

    try:
        found = ImageFolder(folder, is_valid_file=is_image)
    except FileNotFoundError as error:  # no class folders, or one without images
        raise DataError(f"{folder}: {str(error).rstrip()} Supported extensions are: {', '.join(extensions)}") from error
    if passed_over:
        files = f"{passed_over.total():,} file{'s' if passed_over.total() > 1 else ''}"
        each = ", ".join(f"{number:,} {extension}" for extension, number in passed_over.most_common())
        say(f"{folder}: passed over {files}: {each}")
    names = np.array([os.fsencode(file) for file, _ in found.samples])
    return Listing(names, torch.tensor(found.targets)), found.classes


def find(root: Path, spec: object = None) -> Path | None:
    """Return `root` if it holds a training and a test folder."""
    return root if (root / "train").is_dir() and _test_folder(root) else None


def _told_sizes(listing: Listing) -> str:
    """The sizes of some images, for people: read from their headers, nothing is decoded."""
    with extra("run"):
        from PIL import Image

    sizes = []
    for index in np.linspace(0, len(listing.labels) - 1, min(LOOKED_AT, len(listing.labels))).astype(int):
        try:
            with Image.open(listing.file(int(index)), formats=FORMATS) as image:
                sizes.append(image.size)
        except Exception:  # decoding it will report this
            continue
    if not sizes:
        return "none of those looked at can be decoded"
    smallest, largest = min(sizes, key=lambda size: size[0] * size[1]), max(sizes, key=lambda size: size[0] * size[1])
    told = f"{smallest[0]}x{smallest[1]}"
    return told if smallest == largest else f"{told} to {largest[0]}x{largest[1]}"


def read(
    root: Path,
    name: str,
    *,
    validation: float,
    seed: int,
    workers: int,
    size: int = SIZE,
    skip_corrupt: bool = False,
) -> Data:
    """List the files and tell what they are; nothing is decoded yet.

    Raises:
        DataError: a class has no images, or training and test folders have different classes.

    """
    test_root = _test_folder(root)
    assert test_root is not None, "find() comes first"
    listing, classes = _listed(root / "train")
    test_listing, test_classes = _listed(test_root)
    if classes != test_classes:
        other = sorted(set(classes) ^ set(test_classes))
        raise DataError(
            f"{root}: {len(classes)} class folders in train, {len(test_classes)} in {test_root.name}; "
            f"not in both: {', '.join(other[:5])}{', ...' if len(other) > 5 else ''}"
        )
    train, test = len(listing.labels), len(test_listing.labels)
    resized = f"each is cropped and resized to {size}x{size}" + (
        "" if size != SIZE else ", unless --image-size says so"
    )
    say(
        f"{root}: {len(classes)} classes, {train:,} images to train and {test:,} to test,"
        f" {_told_sizes(listing)} pixels; {resized}"
    )
    kept, held_out = divide(train, validation, seed)
    return Data(
        name=name,
        num_classes=len(classes),
        channels=3,
        image_size=size,
        classes=tuple(classes),
        train=FolderSplit(listing, kept, workers, size, skip_corrupt),
        validation=FolderSplit(listing, held_out, workers, size, skip_corrupt),
        test=FolderSplit(test_listing, torch.arange(test), workers, size, skip_corrupt),
    )
