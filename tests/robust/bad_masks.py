"""Mask files that are damaged, hostile, or of another network."""

import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import skeletal
from tests.cases import mlp
from tests.robust import forge
from tests.robust.case import case

MASKS = "Mask files"


def a_mask(**layers: Any) -> Path:
    path = Path("m.safetensors")
    tensors = {name.replace("__", "."): torch.tensor(keep) for name, keep in layers.items()}
    skeletal.Mask(tensors or {"head.weight": torch.tensor([1, 0, 1])}, {"method": "force"}).save(path)
    return path


def load(path: Path) -> skeletal.Mask:
    return skeletal.Mask.load(path)


def forged(change: Callable[[dict[str, Any]], object], **options: Any) -> skeletal.Mask:
    path = a_mask()
    forge.mask_file(path, change, **options)
    return load(path)


def with_bytes(change: Callable[[bytearray], object]) -> skeletal.Mask:
    path = a_mask()
    content = bytearray(path.read_bytes())
    change(content)
    path.write_bytes(content)
    return load(path)


@case(MASKS, "no file there")
def _() -> object:
    return load(Path("m.safetensors"))


@case(MASKS, "a file of another kind: a pickle")
def _() -> object:
    Path("m.safetensors").write_bytes(pickle.dumps({"head.weight": 1}))
    return load(Path("m.safetensors"))


@case(MASKS, "an empty file")
def _() -> object:
    return with_bytes(bytearray.clear)


@case(MASKS, "a safetensors file that is no mask")
def _() -> object:
    save_file({"head.weight": torch.zeros(3)}, "m.safetensors")
    return load(Path("m.safetensors"))


@case(MASKS, "cut short")
def _() -> object:
    return with_bytes(lambda content: content.pop())


@case(MASKS, "one bit flipped")
def _() -> object:
    def flip(content: bytearray) -> None:
        content[-1] ^= 1

    return with_bytes(flip)


@case(MASKS, "bytes after the end")
def _() -> object:
    return with_bytes(lambda content: content.extend(b"more"))


@case(MASKS, "a header that claims 2^60 bytes")
def _() -> object:
    def claim(content: bytearray) -> None:
        content[:8] = struct.pack("<Q", 2**60)

    return with_bytes(claim)


@case(MASKS, "a layer of 10^12 weights in one byte: refused before anything is allocated")
def _() -> object:
    return forged(lambda header: header["shapes"].update({"head.weight": [10**6, 10**6]}))


@case(MASKS, "a layer of more weights than any computer holds")
def _() -> object:
    return forged(lambda header: header["shapes"].update({"head.weight": [0, 2**62, 2**62]}))


@case(MASKS, "a negative size")
def _() -> object:
    return forged(lambda header: header["shapes"].update({"head.weight": [-3]}))


@case(MASKS, "more bits than weights")
def _() -> object:
    return forged(lambda header: None, data=b"\xff")


@case(MASKS, "another list of layers than it holds")
def _() -> object:
    return forged(lambda header: header["shapes"].update({"more.weight": [3]}))


@case(MASKS, "a name that appears twice")
def _() -> object:
    def twice(content: bytearray) -> None:
        start = content.index(rb"{\"head.weight\"")
        content[start + 1 : start + 1] = rb"\"head.weight\": [4], "
        content[:8] = struct.pack("<Q", struct.unpack("<Q", content[:8])[0] + len(rb"\"head.weight\": [4], "))

    return with_bytes(twice)


@case(MASKS, "a name with terminal codes in it")
def _() -> object:
    return forged(lambda header: header.update(shapes={"\x1b[2Jhead": [3]}))


@case(MASKS, "a name that climbs out of a folder: names are never paths, and no network has it")
def _() -> object:
    path = a_mask()
    forge.mask_file(path, lambda header: header.update(shapes={"../../etc/passwd": [3]}))
    return load(path).attach(mlp())


@case(MASKS, "metadata of the wrong kind")
def _() -> object:
    return forged(lambda header: header["metadata"].update(biases="many"))


@case(MASKS, "metadata that cannot be true")
def _() -> object:
    return forged(lambda header: header["metadata"].update(parameters=1))


@case(MASKS, "a header that is no JSON object")
def _() -> object:
    path = a_mask()
    save_file({"head.weight": torch.zeros(1, dtype=torch.uint8)}, path, metadata={"skeletal": "1"})
    return load(path)


@case(MASKS, "metadata nested 5,000 deep")
def _() -> object:
    save_file({"w": torch.zeros(1)}, "m.safetensors", metadata={"skeletal": "[" * 5000})
    return load(Path("m.safetensors"))


@case(MASKS, "a later format version")
def _() -> object:
    return forged(lambda header: header.update(format=2))


@case(MASKS, "the mask of another network")
def _() -> object:
    return load(a_mask()).attach(mlp())


@case(MASKS, "the mask of a network of another width")
def _() -> object:
    return skeletal.Mask({"1.weight": torch.ones(10, 192), "3.weight": torch.ones(10, 10)}).attach(mlp())


@case(MASKS, "values other than 0 and 1")
def _() -> object:
    return skeletal.Mask({"head.weight": torch.tensor([0.0, 0.5])})


@case(MASKS, "no layers")
def _() -> object:
    return skeletal.Mask({})


@case(MASKS, "a pruned weight that is not 0 any more")
def _() -> object:
    return skeletal.Mask({"1.weight": torch.zeros(20, 192), "3.weight": torch.ones(10, 20)}).check(mlp())
