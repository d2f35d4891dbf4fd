"""Checkpoints and run folders that are damaged, hostile, or another's."""

import errno
import json
import os
import threading
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from skeletal.harness.store import statefile
from tests.robust import child, forge
from tests.robust.case import case, command

CHECKPOINTS, RUNS = "Checkpoints", "Run folders and disks"


def run_again(tamper: Callable[[Path], object], engine: str = "dense", begun: str = "dense") -> object:
    """A run with a checkpoint and no result, tampered with, and started again."""
    folder, _ = child.run(Path("runs"), begun, epochs=1)
    (folder.path / "result.json").unlink()
    tamper(folder.path)
    return child.run(Path("runs"), engine, epochs=1)


def with_checkpoint(change: Callable[[bytearray], object]) -> object:
    def tamper(folder: Path) -> None:
        file = statefile.path_in(folder)
        content = bytearray(file.read_bytes())
        change(content)
        file.write_bytes(content)

    return run_again(tamper)


def with_state(change: Callable[[dict[str, Any]], object], **options: str) -> object:
    def tamper(folder: Path) -> None:
        state = statefile.load(folder) or {}
        change(state)
        statefile.save(folder, state)

    return run_again(tamper, **options)


@case(CHECKPOINTS, "cut short")
def _() -> object:
    return with_checkpoint(lambda content: content.pop())


@case(CHECKPOINTS, "one bit flipped")
def _() -> object:
    def flip(content: bytearray) -> None:
        content[len(content) // 2] ^= 1

    return with_checkpoint(flip)


@case(CHECKPOINTS, "bytes after the end")
def _() -> object:
    return with_checkpoint(lambda content: content.extend(b"more"))


@case(CHECKPOINTS, "code in it, which is not run")
def _() -> object:
    class Trap:
        def __reduce__(self) -> Any:
            return open, ("sprung", "w")

    try:
        return with_state(lambda state: state.update(trap=Trap()))
    finally:
        assert not Path("sprung").exists()


@case(CHECKPOINTS, "a tensor larger than its data: refused before anything is allocated")
def _() -> object:
    def lie(name: str, content: bytes) -> bytes:
        size = b"M" + (16 * 4 * 4).to_bytes(2, "little")  # the inputs of the linear layer
        assert "data.pkl" not in name or size in content
        return content.replace(size, b"J" + (10**9).to_bytes(4, "little")) if name.endswith("data.pkl") else content

    return run_again(lambda folder: forge.archive(statefile.path_in(folder), lie))


@case(CHECKPOINTS, "an archive that would grow when unpacked")
def _() -> object:
    return run_again(lambda folder: forge.archive(statefile.path_in(folder), compression=zipfile.ZIP_DEFLATED))


@case(CHECKPOINTS, "an entry twice")
def _() -> object:
    def twice(folder: Path) -> None:
        with zipfile.ZipFile(statefile.path_in(folder), "a") as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            archive.writestr(archive.namelist()[0], b"")

    return run_again(twice)


@case(CHECKPOINTS, "an entry whose name climbs out of a folder")
def _() -> object:
    def climb(folder: Path) -> None:
        with zipfile.ZipFile(statefile.path_in(folder), "a") as archive:
            archive.writestr("../../sprung", b"")

    return run_again(climb)


@case(CHECKPOINTS, "something of torch's that is no run")
def _() -> object:
    return run_again(lambda folder: torch.save({"model": {}}, statefile.path_in(folder)))


@case(CHECKPOINTS, "another format version")
def _() -> object:
    return with_state(lambda state: state.update(format=2))


@case(CHECKPOINTS, "other settings")
def _() -> object:
    return with_state(lambda state: state["settings"].update(lr=3.0))


@case(CHECKPOINTS, "other data")
def _() -> object:
    return with_state(lambda state: state.update(data="other examples"))


@case(CHECKPOINTS, "another network")
def _() -> object:
    return with_state(lambda state: state["model"].update({"9.bias": torch.zeros(3)}))


@case(CHECKPOINTS, "another network, trained by the sparse engine")
def _() -> object:
    return with_state(lambda state: state["engine"]["paths"].pop("4"), engine="sparse", begun="sparse")


@case(CHECKPOINTS, "another engine than the one it was trained by")
def _() -> object:
    return run_again(lambda folder: None, engine="sparse")


@case(RUNS, "config.json edited by hand")
def _() -> object:
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"lr": 3.0}))

    return run_again(edit)


@case(RUNS, "other data under the same name, or a network of your own that you have rewritten")
def _() -> object:
    def elsewhere(folder: Path) -> None:
        file = folder / "environment.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"fingerprint": {"data": "that of other examples"}}))

    return run_again(elsewhere)


@case(RUNS, "a setting that cannot be")
def _() -> object:
    folder, _ = child.run(Path("runs"), "dense", epochs=1)
    config = json.loads((folder.path / "config.json").read_text())
    (folder.path / "config.json").write_text(json.dumps(config | {"seed": "0"}))
    return command("eval", folder.path)


@case(RUNS, "a result without scores")
def _() -> object:
    folder, _ = child.run(Path("runs"), "dense", epochs=1)
    (folder.path / "result.json").write_text('{"test": null}')
    return command("show", folder.path)


@case(RUNS, "a folder of another format version")
def _() -> object:
    def age(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"format": 0}))

    return run_again(age)


@case(RUNS, "config.json is no JSON")
def _() -> object:
    return run_again(lambda folder: (folder / "config.json").write_text("{"))


@case(RUNS, "metrics.jsonl has lost a line; a last line cut in two is dropped and written again")
def _() -> object:
    return run_again(lambda folder: (folder / "metrics.jsonl").write_text(""))


@case(RUNS, "metrics.jsonl with a line that is none")
def _() -> object:
    return run_again(lambda folder: (folder / "metrics.jsonl").write_text("oops\n"))


@case(RUNS, "a damaged mask in it")
def _() -> object:
    return run_again(lambda folder: (folder / "mask.safetensors").write_bytes(b"x"))


@case(RUNS, "the same command started twice; `--wait` waits")
def _() -> object:
    arguments, told = ("run", "--method", "random", "--epochs", "1"), []

    def meanwhile(*_: object) -> None:  # another thread is refused as another process is
        thread = threading.Thread(target=lambda: told.append(command(*arguments)))
        thread.start()
        thread.join()
        raise ValueError("the first has seen enough")

    with mock.patch("skeletal.harness.runs.experiment.prepare", meanwhile):
        command(*arguments)
    return told[0]


@case(RUNS, "a disk that is full: the last checkpoint stays, and nothing half-written")
def _() -> object:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with mock.patch.object(os, "fsync", full):
        return command("prune", "--method", "random")


@case(RUNS, "an output folder that is read-only")
def _() -> object:
    def read_only(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    with mock.patch.object(Path, "mkdir", read_only):
        return command("run", "--method", "random", "--epochs", "1")


@case(RUNS, "an output folder that is a file")
def _() -> object:
    Path("a-file").touch()
    return command("run", "--method", "random", "--epochs", "1", "--out", "a-file")


@case(RUNS, "a mask that is there already")
def _() -> object:
    Path("m.safetensors").touch()
    return command("prune", "--out", "m.safetensors")


@case(RUNS, "a table, a network or a measurement over a file")
def _() -> object:
    Path("table.md").touch()
    return command("study", "table", "1", "--out", "table.md")


@case(RUNS, "a run name that is a path")
def _() -> object:
    return command("run", "--name", "../elsewhere")


@case(RUNS, "no run there")
def _() -> object:
    return command("eval", "runs/mine")
