"""Nothing is lost: a run that was killed, at any point and often, ends as one that never was, to the bit."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import skeletal
from skeletal.harness.store import statefile
from tests.robust import child
from tests.timeless import timeless

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="children are forked, as on Linux"),
]
ENGINES = ["dense", "sparse"]
FILES = {
    "config.json", "environment.json", "mask.safetensors", "metrics.jsonl", "checkpoint", "checkpoint/state.pt",
    "model.safetensors", "result.json",
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """By engine: the folder of a run that nothing disturbed."""
    folders = {}

    def of(engine):
        if engine not in folders:
            root = tmp_path_factory.mktemp(engine)
            assert ends(child.start(root, engine)) == 0
            folders[engine] = folder_in(root)
        return folders[engine]

    return of


def ends(process):
    """How a child ended: its exit status, or the negative signal that killed it."""
    process.join(60)
    assert process.exitcode is not None, "a child does not end"
    return process.exitcode


def folder_in(root):
    """The one run folder, with nothing beside it once the run is through."""
    (folder,) = (path for path in root.iterdir() if not path.name.startswith("."))
    return folder


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return a == b


def assert_as_whole(parts, whole):
    for folder in (parts, whole):
        assert {str(file.relative_to(folder)) for file in folder.rglob("*")} == FILES
        assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert skeletal.Mask.load(parts / "mask.safetensors") == skeletal.Mask.load(whole / "mask.safetensors")
    a, b = (timeless(statefile.load(folder) or {}) for folder in (parts, whole))
    assert "optimizer" in a
    for part in a:
        assert same(a[part], b[part]), part
    rows = [
        [timeless(json.loads(line)) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (parts, whole)
    ]
    assert rows[0] == rows[1] and len(rows[0]) == 3
    assert (parts / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    results = [timeless(json.loads((folder / "result.json").read_text())) for folder in (parts, whole)]
    assert results[0] == results[1]


@pytest.mark.parametrize("engine", ENGINES)
def test_killed_at_random_moments(tmp_path, whole, engine):
    expected, chance, root, longest = whole(engine), random.Random(engine), tmp_path, 1.0
    while not (deaths := killed_now_and_then(root, engine, chance, longest)):
        root, longest = tmp_path / f"{longest}", longest / 2  # it was through before: sooner, with another run
        root.mkdir()
    assert 0 < deaths <= 4
    assert ends(child.start(root, engine)) == 0
    assert_as_whole(folder_in(root), expected)


def killed_now_and_then(root, engine, chance, longest):
    """How often a run was killed, four times at most, before it came to its end."""
    for deaths in range(4):
        process = child.start(root, engine)
        process.join(chance.uniform(0.05, 1) * longest)
        if process.is_alive():
            os.kill(process.pid, chance.choice([signal.SIGINT, signal.SIGTERM, signal.SIGKILL]))
        if ends(process) == 0:
            return deaths
    return 4


@pytest.mark.parametrize("engine", ENGINES)
def test_killed_at_chosen_steps_with_each_signal(tmp_path, whole, engine):
    expected = whole(engine)
    # Six steps an epoch: in the middle, at the end of an epoch, twice in one, and in the first step of a resumed run.
    for step, number in [(2, "INT"), (3, "KILL"), (1, "TERM"), (6, "INT"), (1, "KILL"), (1, "HUP")]:
        status = ends(child.start(tmp_path, engine, step=step, number=signal.Signals[f"SIG{number}"]))
        assert status == (-signal.SIGKILL if number == "KILL" else 130)
    assert ends(child.start(tmp_path, engine)) == 0
    assert_as_whole(folder_in(tmp_path), expected)


@pytest.mark.parametrize("engine", ENGINES)
def test_killed_while_a_file_is_written(tmp_path, whole, engine):
    expected = whole(engine)
    names = ["environment.json", "config.json", "mask.safetensors", "state.pt", "metrics.jsonl", "model.safetensors"]
    for name in [*names, "result.json"]:
        assert ends(child.start(tmp_path, engine, before=name)) == -signal.SIGKILL, name
        folder = folder_in(tmp_path)
        assert [draft.name.split(".")[1] for draft in folder.rglob(".*.tmp")] == [name.split(".")[0]]
        state = statefile.load(folder)  # the one before, whole
        assert ends(child.start(tmp_path, engine, after=name)) == -signal.SIGKILL, name
        assert state is None or statefile.load(folder)["epoch"] >= state["epoch"]
        assert not list(folder.rglob(".*.tmp"))  # the second start has removed what the first had left
    assert ends(child.start(tmp_path, engine)) == 0  # finished already; it only lets go of what the dead held
    for lock in tmp_path.glob(".*.lock"):
        lock.unlink()
    assert_as_whole(folder_in(tmp_path), expected)


def test_a_disk_that_is_full_at_every_write(tmp_path, whole, monkeypatch):
    """Each attempt gets one file further than the one before; the last one finishes."""
    expected, fsync, errors = whole("dense"), os.fsync, []
    for room in range(20):
        left = room

        def full(file):
            nonlocal left
            left -= 1
            if left < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            fsync(file)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            try:
                child.run(tmp_path, "dense")
                break
            except OSError as error:
                assert error.errno == errno.ENOSPC
                errors.append(Path(error.filename).name)
        assert not list(tmp_path.rglob(".*.tmp")) and not list(tmp_path.glob(".*.lock"))
    assert {"environment.json", "config.json", "mask.safetensors", "metrics.jsonl", "state.pt"} <= set(errors)
    assert_as_whole(folder_in(tmp_path), expected)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 256 KiB, and a function that leaves so many bytes free on it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk is root's privilege")

    def leave(free):
        filler = disk / ".filler"
        filler.unlink(missing_ok=True)
        room = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        filler.write_bytes(bytes(max(room - free, 0)))
        return filler

    yield leave
    subprocess.run(["umount", str(disk)], check=True)


def test_a_small_disk(small_disk, whole):
    expected = whole("dense")
    failed_at = []
    for free in (0, 8192, 16384, 40960, 65536):
        filler = small_disk(free)
        root = filler.parent / "runs"
        with pytest.raises(OSError, match="No space left on device") as full:
            child.run(root, "dense")
        failed_at.append(Path(full.value.filename).name)
        assert not list(root.rglob(".*.tmp"))
    assert "state.pt" in failed_at and len(set(failed_at)) > 2
    filler.unlink()
    child.run(root, "dense")
    assert_as_whole(folder_in(root), expected)


def test_two_processes_that_start_the_same_run(tmp_path, whole):
    expected = whole("dense")
    processes = [child.start(tmp_path, "dense") for _ in range(3)]
    statuses = sorted(ends(process) for process in processes)
    assert statuses[0] == 0 and set(statuses) <= {0, 75}  # the others were refused, or came when it was through
    assert_as_whole(folder_in(tmp_path), expected)
