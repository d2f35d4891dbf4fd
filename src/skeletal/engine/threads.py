"""Share the work of a kernel among as many threads as torch uses."""

import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import torch


def share(kernel: Callable[..., Any], units: int, *arguments: Any) -> None:
    """Call `kernel(*arguments, first, last, thread)` such that the ranges [first, last) cover [0, units) once.

    The calling thread takes a share itself. The kernel has to release the interpreter lock (`nogil`). Not numba's own
    thread pool: its portable layer ends the process when two Python threads meet in it, and it does not follow
    `torch.set_num_threads`.
    """
    threads = thread_count(units)
    if threads == 1:
        kernel(*arguments, 0, units, 0)
        return
    edges = [units * i // threads for i in range(threads + 1)]
    pool = _pool(threads - 1, os.getpid(), _flushes())
    others = [pool.submit(kernel, *arguments, edges[i], edges[i + 1], i) for i in range(1, threads)]
    try:
        kernel(*arguments, edges[0], edges[1], 0)
    finally:
        for other in others:
            other.result()


def thread_count(units: int) -> int:
    """How many threads `share` uses."""
    return max(1, min(torch.get_num_threads(), units))


def _flushes() -> bool:
    """Whether this thread flushes denormal numbers to zero: a setting that new threads do not inherit."""
    return sys.float_info.min / 2 == 0.0  # at run time: of two constants Python would work it out beforehand


@lru_cache(maxsize=4)
def _pool(threads: int, process: int, flush: bool) -> ThreadPoolExecutor:
    """One pool for each number of threads. A forked child makes its own: threads do not survive a fork."""
    return ThreadPoolExecutor(threads, "skeletal", initializer=torch.set_flush_denormal, initargs=(flush,))
