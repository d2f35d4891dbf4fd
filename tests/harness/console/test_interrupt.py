"""Signals end a training after its step, at once if they come twice, and in its own process and thread only."""

import os
import signal
import sys
import threading
import time
from dataclasses import replace

import pytest

from skeletal.harness.console.interrupt import Interrupted
from skeletal.harness.training import checkpoint
from tests.harness.training.blobs import blobs, folder, mlp, run


def test_a_second_interrupt_does_not_wait(tmp_path):
    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as stopped:
        run(mlp(), blobs(before={(0, 2): twice}), folder=folder(tmp_path))
    assert not isinstance(stopped.value, Interrupted)
    assert checkpoint.load(folder(tmp_path).path) is None


def test_a_measurement_says_nothing_of_the_folder_that_it_deletes(tmp_path, capsys):
    stop = blobs(before={(0, 2): lambda: signal.raise_signal(signal.SIGINT)})
    with pytest.raises(Interrupted) as stopped:
        run(mlp(), stop, folder=replace(folder(tmp_path), scratch=True))
    assert not str(stopped.value) and not capsys.readouterr().err


def test_a_stop_without_a_folder_says_that_nothing_is_saved():
    with pytest.raises(Interrupted, match=r"step 3 of 5.*nothing is saved"):
        run(mlp(), blobs(before={(0, 2): lambda: signal.raise_signal(signal.SIGTERM)}))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="workers are forked on POSIX only")
@pytest.mark.parametrize("number, ends", [(signal.SIGINT, False), (signal.SIGHUP, False), (signal.SIGTERM, True)])
def test_forked_data_workers_survive_an_interrupt_but_not_a_termination(number, ends):
    codes = []

    def in_worker():
        child = os.fork()
        if child == 0:
            signal.raise_signal(number)
            signal.raise_signal(number)
            os._exit(0)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    run(mlp(), blobs(before={(0, 1): in_worker}))
    assert codes == [128 + number if ends else 0]


def test_training_works_outside_the_main_thread():
    results = []
    thread = threading.Thread(target=lambda: results.append(run(mlp(), blobs())))
    thread.start()
    thread.join()
    assert results[0].epochs == 3


@pytest.mark.skipif(sys.platform != "linux", reason="what a closed terminal does is told here as Linux does it")
def test_a_terminal_that_is_closed_ends_it_with_a_checkpoint(tmp_path):
    import pty

    ready = tmp_path / "ready"

    def wait_for_the_end():
        ready.touch()
        while sys.stderr.isatty():
            time.sleep(0.01)
        print("to nobody", file=sys.stderr, flush=True)

    child, terminal = pty.fork()
    if child == 0:
        sys.stderr = os.fdopen(2, "w", closefd=False)
        try:
            run(mlp(), blobs(before={(0, 2): wait_for_the_end}), folder=folder(tmp_path))
        except Interrupted:
            os._exit(3)
        finally:
            os._exit(4)
    while not ready.exists():
        time.sleep(0.01)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    assert checkpoint.load(folder(tmp_path).path)["batch"] == 3


def test_a_signal_that_is_ignored_stays_so():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        assert run(mlp(), blobs(before={(0, 2): lambda: signal.raise_signal(signal.SIGHUP)})).epochs == 3
    finally:
        signal.signal(signal.SIGHUP, before)
