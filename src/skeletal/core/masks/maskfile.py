"""The mask file: bit-packed safetensors, with what is needed to trust it.

One uint8 tensor per layer holds eight weights per byte, first weight in the lowest bit, padded with zeros.
The header holds, as JSON under the key `skeletal`, the format version, each layer's shape, the caller's metadata and
a SHA-256 of all of it. It is data only: nothing in it is ever executed, and no name in it is ever a path. Every size
is compared with the bytes that are there before anything of that size is made.
"""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from skeletal.core.errors import MaskError
from skeletal.core.files import write_atomically
from skeletal.core.model.tensors import Tensors

FORMAT = 1
_KEY = "skeletal"
_REMEDY = "delete it and prune again, or put back a copy"
_MOST_DIMENSIONS, _MOST_WEIGHTS = 16, 2**40
# What we read from metadata ourselves; the rest is the caller's own.
_KINDS = {
    "biases": int,
    "parameters": int,
    "seed": int,
    "method": str,
    "network": str,
    "data": str,
    "pattern": str,
    "left_out": list,
}


def write(path: str | Path, mask: Tensors, metadata: dict[str, Any]) -> None:
    """Write a mask file at once or not at all: a reader sees the old file or the new one, never half of it.

    Raises:
        TypeError: the metadata holds something that JSON cannot.
        MaskError: a name or an entry that `read` would refuse, as it means something else to us.

    """
    packed = {name: pack(keep) for name, keep in mask.items()}
    header: dict[str, Any] = {
        "format": FORMAT,
        "shapes": {name: list(keep.shape) for name, keep in mask.items()},
        "metadata": json.loads(json.dumps(metadata)),  # as it will be read: keys become text
    }
    try:
        _check_layers(header["shapes"], packed)
        _check_metadata(header["metadata"], header["shapes"])
    except ValueError as error:
        raise MaskError(f"this mask cannot be saved: {error}") from None
    header["sha256"] = _digest(header, packed)
    content = save(packed, metadata={_KEY: json.dumps(header)})
    write_atomically(path, content)


def read(path: str | Path) -> tuple[Tensors, dict[str, Any]]:
    """Read a mask file back: the bool tensors, in the order they were written, and the metadata.

    Raises:
        FileNotFoundError: no such file.
        MaskError: not a mask file, of a later format, or damaged; the message says which.

    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no mask file at {path}")
    try:
        with safe_open(str(path), framework="pt") as file:
            told = (file.metadata() or {}).get(_KEY)
            if told is None:
                raise ValueError(f"its header has no entry {_KEY!r}")
            header = json.loads(told, object_pairs_hook=_without_duplicates)
            _check_format(Path(path), header)
            packed = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return _unpack_all(header, packed)
    except MaskError:
        raise
    except (SafetensorError, ValueError, OSError, RecursionError, MemoryError) as error:
        raise MaskError(f"{path} is not a skeletal mask file, or it is damaged ({error}); {_REMEDY}") from error


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object without duplicate names, the last of which would otherwise win silently."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the name {name!r} appears twice")
        found[name] = value
    return found


def _check_format(path: Path, header: Any) -> None:
    if not isinstance(header, dict):
        raise ValueError(f"its header is {_short(header)}, and no JSON object")
    found = header.get("format")
    if type(found) is not int or found != FORMAT:
        raise MaskError(f"{path} has mask format {_short(found)}; this version of skeletal reads {FORMAT}; {_REMEDY}")


def _unpack_all(header: dict[str, Any], packed: Tensors) -> tuple[Tensors, dict[str, Any]]:
    shapes, metadata = header.get("shapes"), header.get("metadata")
    if not isinstance(shapes, dict) or not isinstance(metadata, dict) or shapes.keys() != packed.keys():
        raise ValueError("its header does not list the layers it holds")
    _check_layers(shapes, packed)
    ordered = {name: packed[name] for name in shapes}
    if header.get("sha256") != _digest(header, ordered):
        raise ValueError("its content does not match its checksum")
    _check_metadata(metadata, shapes)
    return {name: unpack(ordered[name], tuple(shapes[name])) for name in shapes}, metadata


def _check_layers(shapes: dict[str, Any], packed: Tensors) -> None:
    for name, shape in shapes.items():
        _check_layer(name, shape, packed[name])


def _check_layer(name: str, shape: Any, bits: Tensor) -> None:
    if not name.isprintable():  # it will be shown in a terminal
        raise ValueError(f"the layer name {_short(name)} holds characters that cannot be printed")
    if (
        not isinstance(shape, list)
        or len(shape) > _MOST_DIMENSIONS
        or not all(type(n) is int and n >= 0 for n in shape)
        or math.prod(max(n, 1) for n in shape) > _MOST_WEIGHTS
    ):
        raise ValueError(f"layer {name} has the shape {_short(shape)}")
    weights = math.prod(shape)
    if bits.dtype != torch.uint8 or bits.dim() != 1 or len(bits) != math.ceil(weights / 8):
        raise ValueError(f"layer {name} {shape} has {bits.numel()} bytes of {bits.dtype}")
    if weights % 8 and int(bits[-1]) >> weights % 8:
        raise ValueError(f"layer {name} {shape} has more bits than weights")


def _check_metadata(metadata: dict[str, Any], shapes: dict[str, list[int]]) -> None:
    total = sum(math.prod(shape) for shape in shapes.values())
    for key, kind in _KINDS.items():
        value = metadata.get(key)
        if value is not None and (type(value) is not kind or (isinstance(value, str) and not value.isprintable())):
            raise ValueError(f"its metadata says {key} = {_short(value)}, which should be {kind.__name__}")
    if not all(isinstance(name, str) and name.isprintable() for name in metadata.get("left_out") or ()):
        raise ValueError("its metadata says left_out, which should be a list of names")
    for key, least in (("biases", 0), ("parameters", max(total, 1))):
        if (value := metadata.get(key)) is not None and value < least:
            raise ValueError(f"its metadata says {key} = {value}, which should be at least {least}")


def _short(value: object) -> str:
    return repr(value)[:100]


def pack(keep: Tensor) -> Tensor:
    """Eight weights per byte, first weight lowest: a bool tensor of n entries becomes uint8 of ceil(n / 8)."""
    flat = keep.detach().reshape(-1).cpu()
    padded = torch.nn.functional.pad(flat, (0, -len(flat) % 8)).reshape(-1, 8)
    return (padded.to(torch.uint8) << torch.arange(8, dtype=torch.uint8, device="cpu")).sum(1, dtype=torch.uint8)


def unpack(bits: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The inverse of `pack`."""
    flat = (bits.unsqueeze(1) >> torch.arange(8, dtype=torch.uint8, device="cpu") & 1).reshape(-1)
    return flat[: math.prod(shape)].to(torch.bool).reshape(shape)


def _digest(header: dict[str, Any], packed: Tensors) -> str:
    told = {key: header[key] for key in ("format", "shapes", "metadata")}
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for name, bits in sorted(packed.items()):
        digest.update(name.encode() + b"\0" + bits.numpy().tobytes())
    return digest.hexdigest()
