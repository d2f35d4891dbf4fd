import errno
import os
import platform
import signal
import subprocess
import sys
import threading
import time

import pytest

from skeletal.core.errors import BusyError
from skeletal.harness.store import run_lock
from skeletal.harness.store.folders import RunFolder

pytestmark = pytest.mark.skipif(run_lock.fcntl is None, reason="no flock on this system")

# Holds the run's claim until its standard input is closed, or for as long as it lives.
HOLDER = """
import sys
from pathlib import Path
from skeletal.harness.store.run_lock import claim  # which a folder uses; this does not import torch

with claim(Path(sys.argv[1]), "the run"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def root(tmp_path):
    return tmp_path / "runs"


@pytest.fixture
def other(root):
    """Another process that has claimed the same run."""
    command = [sys.executable, "-c", HOLDER, str(folder(root)._lock)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
        process.kill()


def folder(root):
    return RunFolder.find(root, "tiny", {})


def test_a_claim_keeps_other_threads_out_and_leaves_nothing_behind(root):
    outcomes = []

    def second():
        try:
            with folder(root).claim():
                outcomes.append("in")
        except BusyError as error:
            outcomes.append(str(error))

    with folder(root).claim():
        assert folder(root).running
        with folder(root).claim():  # again, in the same thread
            pass
        assert folder(root).running
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert f"process {os.getpid()} on {platform.node()}" in outcomes[0]
    assert not folder(root).running and not root.exists()
    second()
    assert outcomes[1:] == ["in"]


def test_a_claim_ends_with_an_exception_and_removes_no_folder_of_others(root):
    root.mkdir()
    with pytest.raises(KeyError), folder(root).claim():
        raise KeyError
    assert list(root.iterdir()) == [] and not folder(root).running


def test_another_process_is_named_and_refused(root, other):
    with pytest.raises(BusyError) as busy, folder(root).claim():
        pass
    for part in (str(folder(root).path), f"process {other.pid} on {platform.node()}", "since 20", "--wait", "resumes"):
        assert part in str(busy.value)
    assert folder(root).running


@pytest.mark.parametrize("readable", [True, False])
def test_somebody_elses_claim_is_seen(root, other, monkeypatch, readable):
    opened = os.open

    def open_of_others(path, flags, *mode):
        if flags & (os.O_RDWR | os.O_WRONLY) or not readable:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, flags, *mode)

    monkeypatch.setattr(run_lock.os, "open", open_of_others)
    assert run_lock.is_claimed(folder(root)._lock)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_process_that_was_killed_holds_nothing(root, other, number):
    other.send_signal(number)
    other.wait()
    assert not folder(root).running
    with folder(root).claim():
        pass
    assert list(root.iterdir()) == []  # what the dead process left, too


def test_waiting_for_another_process(root, other):
    let_go = threading.Timer(0.3, other.stdin.close)
    let_go.start()
    with pytest.warns(UserWarning, match=f"busy: process {other.pid} .* waiting"), folder(root).claim(wait=True):
        other.wait(10)  # it had let go before
        assert folder(root).running
    let_go.join()


def test_many_who_want_the_same_have_it_one_after_the_other(root):
    inside, most = [0], [0]

    def work():
        for _ in range(20):
            while True:
                try:
                    with folder(root).claim():
                        inside[0] += 1
                        most[0] = max(most[0], inside[0])
                        time.sleep(0.001)
                        inside[0] -= 1
                    break
                except BusyError:
                    time.sleep(0.001)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] and not folder(root).running
    assert not root.exists() or list(root.iterdir()) == []


def test_a_forked_worker_does_not_keep_the_claim_of_its_parent(root):
    with folder(root).claim():
        child = os.fork()
        if child == 0:
            time.sleep(60)  # it outlives the claim
            os._exit(0)
        assert folder(root).running
    try:
        assert not folder(root).running
        with folder(root).claim():
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_file_system_without_locks_is_a_warning(root, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(run_lock.fcntl, "flock", flock)
    with pytest.warns(UserWarning, match="without locks.*nothing keeps a second process"), folder(root).claim():
        assert not folder(root).running
    assert not root.exists()


def test_a_full_disk_does_not_stop_a_claim(root, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with folder(root).claim(), pytest.raises(BusyError, match="another process"):
        _raise_in_thread(root)


def _raise_in_thread(root):
    errors = []

    def claim():
        try:
            with folder(root).claim():
                pass
        except BusyError as error:
            errors.append(error)

    thread = threading.Thread(target=claim)
    thread.start()
    thread.join()
    raise errors[0]


def test_a_claim_removes_what_a_killed_writer_left(root):
    place = RunFolder.open(root, "tiny", {})
    (place.path / "checkpoint").mkdir()
    drafts = [place.path / ".result.json.123.tmp", place.path / "checkpoint" / ".state.pt.123.tmp"]
    for draft in drafts:
        draft.write_bytes(b"half")
    with place.claim():
        assert not any(draft.exists() for draft in drafts)
        assert (place.path / "config.json").exists()
