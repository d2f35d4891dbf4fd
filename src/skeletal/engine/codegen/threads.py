"""Share the work of a kernel among as many threads as torch uses."""

import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from skeletal.engine.codegen.fork import ASLEEP, WORDS, serve

_PATIENCE = 1e-3
"""Seconds for which a worker watches for work before it sleeps: longer than Python takes between two kernels of
a network, and no longer than torch's own threads, which may need the core, can wait."""
_NO_ONE = np.zeros((0, WORDS), np.int64)


def share(kernel: Callable[..., Any], units: int, *arguments: Any) -> None:
    """Call `kernel(boards, threads, units, *arguments)`, a function as `fork` describes, which covers all units once.

    The calling thread takes a share itself. numba's own thread pool will not do: its portable layer ends the process
    when two Python threads meet in it, and it does not follow `torch.set_num_threads`. If several Python threads call
    at the same time, one gets the workers; the others work alone, share by share, so that results are the same.
    """
    threads = thread_count(units)
    if threads == 1:
        kernel(_NO_ONE, 1, units, *arguments)
        return
    team = _team(threads - 1, os.getpid(), _flushes())
    if not team.turn.acquire(blocking=False):
        kernel(_NO_ONE, threads, units, *arguments)
        return
    try:
        team.wake()
        kernel(team.boards, threads, units, *arguments)
    finally:
        team.turn.release()


def thread_count(units: int) -> int:
    """How many threads `share` uses."""
    return max(1, min(torch.get_num_threads(), units))


def _flushes() -> bool:
    """Whether this thread flushes denormal numbers to zero: a setting that new threads do not inherit."""
    return sys.float_info.min / 2 == 0.0  # at run time: with two constants, Python would work it out beforehand


class _Team:
    """Workers of one caller at a time. They end when the team is no longer used."""

    def __init__(self, workers: int, flush: bool) -> None:
        self.turn = threading.Lock()
        self.boards = np.zeros((workers, WORDS), np.int64)
        self._wakes = [threading.Lock() for _ in range(workers)]
        ended, threads = threading.Event(), []
        for board, wake in zip(self.boards, self._wakes, strict=True):
            wake.acquire()
            settings = board, wake, ended, flush
            threads.append(threading.Thread(target=_work, args=settings, name="skeletal", daemon=True))
            threads[-1].start()
        weakref.finalize(self, _end, self.boards, self._wakes, ended, threads)  # also at the interpreter's end

    def wake(self) -> None:
        """Wake sleeping workers; they come too late for a short kernel, but in time for the next."""
        _wake(self.boards, self._wakes)


def _wake(boards: np.ndarray, wakes: list[threading.Lock]) -> None:
    for board, wake in zip(boards, wakes, strict=True):
        if board[ASLEEP]:
            board[ASLEEP] = 0
            wake.release()


def _end(
    boards: np.ndarray, wakes: list[threading.Lock], ended: threading.Event, threads: list[threading.Thread]
) -> None:
    """Wait for them, too: a thread that returns from compiled code to an interpreter that has ended aborts it."""
    ended.set()
    _wake(boards, wakes)
    for thread in threads:
        if thread is not threading.current_thread():
            thread.join()


def _work(board: np.ndarray, wake: threading.Lock, ended: threading.Event, flush: bool) -> None:
    torch.set_flush_denormal(flush)
    patience = _looks(_PATIENCE)
    while True:
        serve(board, patience)
        board[ASLEEP] = 1
        if ended.is_set():
            return
        wake.acquire()


@lru_cache(maxsize=1)
def _looks(seconds: float) -> int:
    """How many looks at a board take that long on this machine."""
    board, looks = np.zeros(WORDS, np.int64), 100_000
    serve(board, 0)  # compiles, or loads what was
    took = min(_timed(board, looks) for _ in range(5))
    return round(looks * seconds / took)


def _timed(board: np.ndarray, looks: int) -> float:
    started = time.perf_counter()
    serve(board, looks)
    return time.perf_counter() - started


@lru_cache(maxsize=4)
def _team(workers: int, process: int, flush: bool) -> _Team:
    """One team for each number of workers. A forked child makes its own: threads do not survive a fork."""
    return _Team(workers, flush)
