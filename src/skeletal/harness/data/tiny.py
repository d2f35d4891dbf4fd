"""Tiny-ImageNet as Stanford's course CS231n packed it.

    wnids.txt  words.txt  train/<wnid>/images/*.JPEG  val/images/*.JPEG  val/val_annotations.txt

Its `val` is the test set, as in the field, because `test` has no labels. Classes are numbered in the order of
the sorted wnids.
"""

from pathlib import Path

import torch

from skeletal.harness.data.errors import DataError
from skeletal.harness.data.memory import Arrays, Part, checked
from skeletal.harness.data.pixels import decode
from skeletal.harness.data.specs import Spec

SUFFIXES = (".jpeg", ".jpg")  # copied from some file systems, in small letters
LOOKS_FOR = "tiny-imagenet-200/ with wnids.txt, train/ and val/val_annotations.txt"


def _part(files: list[Path], labels: list[int], spec: Spec, source: Path, skip_corrupt: bool) -> Part:
    if not files:
        raise DataError(f"{source}: no images")
    shape = {"channels": spec.channels, "size": spec.image_size}
    images, decoded = decode(files, lambda i: str(files[i]), skip_corrupt=skip_corrupt, **shape)
    return checked(images, torch.tensor(labels, dtype=torch.int64)[decoded], spec, source)


def _train(folder: Path, number: dict[str, int], spec: Spec, skip_corrupt: bool) -> Part:
    files: list[Path] = []
    labels: list[int] = []
    for wnid, label in number.items():
        images = folder / wnid / "images"
        of_class = sorted(file for file in images.glob("*") if file.suffix.lower() in SUFFIXES)
        if not of_class:
            raise DataError(f"{images}: no images of this class (*.JPEG): unpack the archive again")
        files += of_class
        labels += [label] * len(of_class)
    return _part(files, labels, spec, folder, skip_corrupt)


def _test(folder: Path, number: dict[str, int], spec: Spec, skip_corrupt: bool) -> Part:
    annotations = folder / "val_annotations.txt"
    files: list[Path] = []
    labels: list[int] = []
    for at, line in enumerate(annotations.read_text(encoding="utf-8-sig").splitlines(), 1):
        file, _, rest = line.partition("\t")
        wnid = rest.partition("\t")[0]
        if wnid not in number or Path(file).name != file:
            raise DataError(f"{annotations}, line {at}: not a file name and a wnid of wnids.txt: {line!r}")
        files.append(folder / "images" / file)
        labels.append(number[wnid])
    return _part(files, labels, spec, annotations, skip_corrupt)


def _words(path: Path) -> dict[str, str]:
    lines = path.read_text(encoding="utf-8-sig").splitlines() if path.is_file() else []
    return {wnid: words.split(",")[0] for wnid, _, words in (line.partition("\t") for line in lines)}


def find(root: Path, spec: Spec) -> Path | None:
    """Return the unpacked folder: below `root`, or `root` itself."""
    for folder in (root / "tiny-imagenet-200", root):
        if (folder / "wnids.txt").is_file() and (folder / "val" / "val_annotations.txt").is_file():
            return folder
    return None


def read(folder: Path, spec: Spec, skip_corrupt: bool = False) -> Arrays:
    """Decode both parts; a class is named by the first of its words."""
    wnids = sorted((folder / "wnids.txt").read_text(encoding="utf-8-sig").split())
    if len(set(wnids)) != spec.num_classes:
        raise DataError(f"{folder / 'wnids.txt'}: {len(set(wnids))} classes, {spec.name} has {spec.num_classes}")
    number = {wnid: label for label, wnid in enumerate(wnids)}
    words = _words(folder / "words.txt")
    classes = tuple(words.get(wnid, wnid) for wnid in wnids)
    train = _train(folder / "train", number, spec, skip_corrupt)
    return Arrays(train, _test(folder / "val", number, spec, skip_corrupt), classes)
