"""Work shared among threads: every unit once, whoever does it, and threads compute as their caller does."""

import gc
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from skeletal.engine.codegen import threads
from skeletal.engine.codegen.compiling import compiled
from skeletal.engine.codegen.fork import ASLEEP, DONE, LAST_OFFER, WORDS, fork, held, part_of
from skeletal.engine.codegen.threads import share, thread_count

TINY = sys.float_info.min


@compiled
def note(seen, numbers, first, last, thread):
    """Count each unit, and write down which thread had it."""
    for unit in range(first, last):
        seen[unit] += 1
        numbers[unit] = thread


@compiled
def shared_note(boards, threads, units, *arguments):
    fork(boards, threads, units, part_of(note, arguments), held(arguments))


@compiled
def halve(numbers, first, last, thread):
    for unit in range(first, last):
        numbers[unit] = numbers[unit] / 2


@compiled
def shared_halve(boards, threads, units, *arguments):
    fork(boards, threads, units, part_of(halve, arguments), held(arguments))


@pytest.fixture(autouse=True)
def as_before():
    count = torch.get_num_threads()
    yield
    torch.set_num_threads(count)
    torch.set_flush_denormal(False)


def parts(units, count):
    """The thread of each unit."""
    edges = [units * i // count for i in range(count + 1)]
    return [thread for thread in range(count) for _ in range(edges[thread], edges[thread + 1])]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("units", [0, 1, 2, 7, 64])
def test_every_unit_once_and_always_in_the_same_part(count, units):
    torch.set_num_threads(count)
    for _ in range(20):
        seen, numbers = np.zeros(units, np.int64), np.full(units, -1)
        share(shared_note, units, seen, numbers)
        assert seen.tolist() == [1] * units
        assert numbers.tolist() == parts(units, thread_count(units))


@pytest.mark.parametrize("workers", [0, 1, 2, 4])
def test_what_no_worker_takes_the_caller_does(workers):
    seen, numbers = np.zeros(17, np.int64), np.full(17, -1)
    shared_note(np.zeros((workers, WORDS), np.int64), 4, 17, seen, numbers)
    assert seen.tolist() == [1] * 17
    assert numbers.tolist() == parts(17, 4)


def test_workers_that_went_to_sleep_come_back():
    team, units = threads._Team(1, flush=False), 10**6
    seen, numbers = np.zeros(units, np.int64), np.full(units, -1)
    calls = 0
    for _ in range(3):
        while not team.boards[0, ASLEEP]:
            time.sleep(1e-3)
        for _ in range(1000):  # too late for the first calls
            team.wake()
            shared_note(team.boards, 2, units, seen, numbers)
            calls += 1
            if team.boards[0, DONE] == team.boards[0, LAST_OFFER]:
                break
        else:
            pytest.fail("the worker never took a part")
    assert (seen == calls).all()
    assert numbers.tolist() == parts(units, 2)


def test_threads_flush_denormals_where_their_caller_does():
    torch.set_num_threads(3)
    for flush in (True, False, True):
        if not torch.set_flush_denormal(flush):
            pytest.skip("this processor has no such switch")
        for _ in range(50):  # so that some parts are the workers'
            numbers = np.full(3 * 10**4, TINY)
            share(shared_halve, len(numbers), numbers)
            assert (numbers == 0).all() if flush else (numbers > 0).all()


def test_callers_in_several_threads():
    torch.set_num_threads(2)
    barrier = threading.Barrier(4)

    def call(number):
        seen, numbers = np.zeros(1000, np.int64), np.full(1000, -1)
        barrier.wait()
        for _ in range(200):
            share(shared_note, len(seen), seen, numbers)
        return (seen == 200).all() and numbers.tolist() == parts(1000, 2)

    with ThreadPoolExecutor(4) as callers:
        assert all(callers.map(call, range(4)))


def test_a_team_that_is_no_longer_used_ends():
    team = threads._Team(3, flush=False)
    workers = [thread for thread in threading.enumerate() if thread.name == "skeletal"][-3:]
    assert len(workers) == 3 and all(worker.is_alive() for worker in workers)
    del team
    gc.collect()
    assert not any(worker.is_alive() for worker in workers)


def test_no_worker_outlives_the_interpreter():
    """One that came out of compiled code after its end has aborted processes."""
    code = """
import threading
import numpy as np, torch
from skeletal.engine.codegen.threads import share
from tests.engine.codegen.test_threads import shared_note

class Last:  # goes when the interpreter has ended
    def __del__(self, threads=threading.enumerate, show=print):
        show([thread.name for thread in threads() if thread.name == "skeletal"])

last = Last()
torch.set_num_threads(3)
share(shared_note, 100, np.zeros(100, np.int64), np.zeros(100, np.int64))
print([thread.name for thread in threading.enumerate() if thread.name == "skeletal"])
"""
    command = [sys.executable, "-u", "-c", code]  # nobody flushes what is printed so late
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "['skeletal', 'skeletal']\n[]\n", "")
