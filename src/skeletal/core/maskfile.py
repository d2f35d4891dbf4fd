"""The mask file: bit-packed safetensors, with what is needed to trust it.

One uint8 tensor per layer holds eight weights a byte, first weight in the lowest bit, padded with zeros.
The header holds, as JSON under the key `skeletal`, the format version, each layer's shape, the caller's metadata and
a SHA-256 of all of it. It is data only: nothing in it is ever executed.
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
from skeletal.core.selection import Tensors

FORMAT = 1
_KEY = "skeletal"


def write(path: str | Path, mask: Tensors, metadata: dict[str, Any]) -> None:
    """Write a mask file at once or not at all: a reader sees the old file or the new one, never half of it.

    Raises:
        TypeError: the metadata holds something that JSON cannot.

    """
    packed = {name: pack(keep) for name, keep in mask.items()}
    header: dict[str, Any] = {
        "format": FORMAT,
        "shapes": {name: list(keep.shape) for name, keep in mask.items()},
        "metadata": json.loads(json.dumps(metadata)),  # as it will be read: keys become text
    }
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
            header = json.loads((file.metadata() or {})[_KEY])
            packed = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, ValueError, OSError, RecursionError) as error:
        raise MaskError(
            f"{path} is not a skeletal mask file, or it is damaged ({error}): write it again with mask.save"
        ) from error
    return _unpack_all(Path(path), header, packed)


def _unpack_all(path: Path, header: Any, packed: Tensors) -> tuple[Tensors, dict[str, Any]]:
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        found = header.get("format") if isinstance(header, dict) else header
        raise MaskError(f"{path} has mask format {found!r}; this version of skeletal reads format {FORMAT}")
    shapes, metadata = header.get("shapes"), header.get("metadata")
    if not isinstance(shapes, dict) or not isinstance(metadata, dict) or shapes.keys() != packed.keys():
        raise MaskError(f"{path} is damaged: its header does not list the layers it holds")
    for name, shape in shapes.items():
        if not isinstance(shape, list) or not all(type(n) is int and 0 <= n < 2**40 for n in shape):
            raise MaskError(f"{path} is damaged: layer {name} has the shape {shape!r}")
        bits = packed[name]
        if bits.dtype != torch.uint8 or bits.dim() != 1 or len(bits) != math.ceil(math.prod(shape) / 8):
            raise MaskError(f"{path} is damaged: layer {name} {shape} has {bits.numel()} bytes of {bits.dtype}")
    ordered = {name: packed[name] for name in shapes}
    if header.get("sha256") != _digest(header, ordered):
        raise MaskError(f"{path} is damaged: its content does not match its checksum")
    return {name: unpack(ordered[name], tuple(shapes[name])) for name in shapes}, metadata


def pack(keep: Tensor) -> Tensor:
    """Eight weights a byte, first weight lowest: a bool tensor of n entries becomes uint8 of ceil(n / 8)."""
    flat = keep.detach().reshape(-1).cpu()
    padded = torch.nn.functional.pad(flat, (0, -len(flat) % 8)).reshape(-1, 8)
    return (padded.to(torch.uint8) << torch.arange(8, dtype=torch.uint8)).sum(1, dtype=torch.uint8)


def unpack(bits: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The inverse of `pack`."""
    flat = (bits.unsqueeze(1) >> torch.arange(8, dtype=torch.uint8) & 1).reshape(-1)
    return flat[: math.prod(shape)].to(torch.bool).reshape(shape)


def _digest(header: dict[str, Any], packed: Tensors) -> str:
    told = {key: header[key] for key in ("format", "shapes", "metadata")}
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for name, bits in sorted(packed.items()):
        digest.update(name.encode() + b"\0" + bits.numpy().tobytes())
    return digest.hexdigest()
