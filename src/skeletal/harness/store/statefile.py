"""The checkpoint's file: one archive of torch's, replaced atomically, and read as a stranger's.

Not accelerate's `save_state`: that writes several files, which cannot be replaced at once, so that a kill in
between leaves a model of one step beside the optimizer of another; and its random states are a pickle, which
may run code when it is loaded. Ours is read with `weights_only=True`, after a look at the archive itself.
"""

import os
from pathlib import Path
from typing import IO, Any
from zipfile import ZIP_STORED, ZipFile

import torch

from skeletal.core.files import atomic_file

FORMAT = 1
KEPT = "rewind"
"""folder in a run folder: the state of an epoch that other trainings go back to"""
REMEDY = "delete it to train from the beginning"
_END_SIGN, _END_SIZE = b"PK\5\6", 22  # of the archive's last record; torch adds no comment to it
_NEEDED = {
    "settings": dict, "model": dict, "optimizer": dict, "scheduler": dict, "tally": dict, "epoch": int, "batch": int,
    "epoch_seconds": float, "seconds": float, "rng": torch.Tensor,
}  # fmt: skip


class _OtherFormatError(ValueError):
    """Written by another version."""


def path_in(folder: Path) -> Path:
    """Where a run folder's checkpoint lies."""
    return folder / "checkpoint" / "state.pt"


def save(folder: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors, numbers, strings and containers of them) to `folder/checkpoint/state.pt`.

    Raises:
        OSError: it cannot be written, as on a full disk; the one before is still there.

    """
    path = path_in(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        torch.save({"format": FORMAT, **state}, file)


def load(folder: Path) -> dict[str, Any] | None:
    """The last state saved in `folder`, with its tensors on the CPU; `None` if there is none.

    Raises:
        OSError: it cannot be opened.
        ValueError: the file is damaged, does not hold a run's state, or is of another format version.

    """
    path = path_in(folder)
    if not path.exists():
        return None
    with open(path, "rb") as file:
        try:
            _check_archive(file)
            file.seek(0)
            state = torch.load(file, map_location="cpu", weights_only=True)
            _check_parts(state)
        except _OtherFormatError as error:
            raise ValueError(f"{path} {error}; use the version that wrote it, or {REMEDY}") from None
        except Exception as error:  # there is no list of all that reading foreign bytes may raise
            raise ValueError(
                f"{path} is damaged or not a checkpoint of skeletal ({in_short(error)}); {REMEDY}"
            ) from error
    return state


def engine_of(state: dict[str, Any]) -> dict[str, Any]:
    """The `Engine.choice` of a state; those written before there was one are dense."""
    return state.get("engine", {"asked": "dense"})


def in_short(error: Exception) -> str:
    """What an error says, in 200 characters: torch's fill pages."""
    return " ".join((str(error) or type(error).__name__).split())[:200]


def _check_archive(file: IO[bytes]) -> None:
    # torch verifies no checksum: a flipped bit would be a different weight. And nothing may grow when unpacked.
    file.seek(-_END_SIZE, os.SEEK_END)
    if not file.read().startswith(_END_SIGN):
        raise ValueError("it does not end where its archive ends")
    with ZipFile(file) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != ZIP_STORED or entry.flag_bits & 1 for entry in entries):
            raise ValueError("an entry is compressed or encrypted")
        if sum(entry.file_size for entry in entries) > os.fstat(file.fileno()).st_size:
            raise ValueError("its entries are larger than the file")
        if len({entry.filename for entry in entries}) < len(entries):
            raise ValueError("two entries have the same name")
        if (damaged := archive.testzip()) is not None:
            raise ValueError(f"{damaged} does not match its checksum")


def _check_parts(state: Any) -> None:
    if not isinstance(state, dict) or "format" not in state:
        raise ValueError("it holds no run")
    if state["format"] != FORMAT:
        raise _OtherFormatError(f"has format {state['format']!r}, this version of skeletal reads {FORMAT}")
    for name, kind in _NEEDED.items():
        if not isinstance(state.get(name), kind):
            raise ValueError(f"{name} should be {kind.__name__}, not {type(state.get(name)).__name__}")
    if state["epoch"] < 0 or state["batch"] < 0:
        raise ValueError(f"epoch {state['epoch']}, batch {state['batch']}")
    for name, value in state["model"].items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise ValueError(f"the model's {name!r} is no tensor")
    engine = engine_of(state)
    if not isinstance(engine, dict) or not isinstance(engine.get("asked"), str):
        raise ValueError(f"the engine is {engine!r}")
    if "paths" in engine and not (isinstance(engine["paths"], dict) and isinstance(engine.get("chosen"), str)):
        raise ValueError("the engine's choice of paths is incomplete")
    update = state.get("update", {"step": 0, "begun_with": 0, "mask": {}})
    if not isinstance(update, dict) or not all(type(update.get(name)) is int for name in ("step", "begun_with")):
        raise ValueError("the moving mask's steps are incomplete")
    mask = update.get("mask")
    if not isinstance(mask, dict) or not all(isinstance(keep, torch.Tensor) for keep in mask.values()):
        raise ValueError("the moving mask is incomplete")
