"""Work shared among threads: every unit once, errors reach the caller, and threads compute as their caller does."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from skeletal.engine.threads import share, thread_count


@pytest.fixture(autouse=True)
def as_before():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
@pytest.mark.parametrize("units", [0, 1, 2, 7, 64])
def test_every_unit_once(threads, units):
    torch.set_num_threads(threads)
    seen, numbers = [], []

    def kernel(first, last, thread):
        seen.extend(range(first, last))
        numbers.append(thread)

    share(kernel, units)
    assert sorted(seen) == list(range(units))
    assert sorted(numbers) == list(range(thread_count(units)))


def test_an_error_in_any_thread_reaches_the_caller():
    torch.set_num_threads(3)

    def kernel(first, last, thread):
        if thread == 2:
            raise ZeroDivisionError("here")

    with pytest.raises(ZeroDivisionError, match="here"):
        share(kernel, 9)


def test_threads_flush_denormals_where_their_caller_does():
    torch.set_num_threads(3)
    results = {}

    def kernel(first, last, thread):
        results[thread] = sys.float_info.min / 2

    for flush in (True, False, True):
        if not torch.set_flush_denormal(flush):
            pytest.skip("this processor has no such switch")
        share(kernel, 9)
        assert [value == 0 for value in results.values()] == [flush] * 3


def test_callers_in_several_threads():
    torch.set_num_threads(2)
    barrier = threading.Barrier(4)

    def call(number):
        total = []
        barrier.wait()
        for _ in range(50):
            share(lambda first, last, thread: total.extend(range(first, last)), 8)
        return sorted(total) == sorted(list(range(8)) * 50)

    with ThreadPoolExecutor(4) as callers:
        assert all(callers.map(call, range(4)))
