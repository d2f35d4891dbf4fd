"""Files as a hostile author would make them: what they say of themselves is false, and their checksums are right."""

import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from skeletal.core.masks import maskfile


def mask_file(path: Path, change: Callable[[dict[str, Any]], object], *, data: bytes | None = None) -> None:
    """Change a mask file's own header, as plain data, and set its checksum right; `data` replaces the bits."""
    content = path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    outer, bits = json.loads(content[8 : 8 + size]), data or content[8 + size :]
    inner = json.loads(outer["__metadata__"]["skeletal"])
    change(inner)
    tensors = {
        name: torch.tensor(list(bits[slice(*where["data_offsets"])]), dtype=torch.uint8)
        for name, where in outer.items()
        if name != "__metadata__"
    }
    if len(tensors) == len(inner["shapes"]):  # under the names it has now
        renamed = dict(zip(inner["shapes"], tensors.values(), strict=True))
        entries = [where for name, where in outer.items() if name != "__metadata__"]
        outer = {"__metadata__": outer["__metadata__"]} | dict(zip(renamed, entries, strict=True))
        inner["sha256"] = maskfile._digest(inner, renamed)
    outer["__metadata__"]["skeletal"] = json.dumps(inner)
    header = json.dumps(outer).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bits)


def archive(path: Path, change: Callable[[str, bytes], bytes] = lambda _, content: content, **options: Any) -> None:
    """Write a checkpoint's archive again with each entry's content changed."""
    with zipfile.ZipFile(path) as old:
        entries = {name: change(name, old.read(name)) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", **options) as new:
        for name, content in entries.items():
            new.writestr(name, content)
