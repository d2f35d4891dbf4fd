"""Runs a function in two gloo processes, and hands back what each has found."""

import os
import time
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

from tests.forked import server

SECONDS = 240


def _work(rank, work, folder, ranks):
    torch.set_num_threads(1)
    wait = timedelta(seconds=90)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks, timeout=wait)
    found = work(rank, folder)
    torch.save(found, f"{folder}/found-{rank}")
    os._exit(0)  # a group that has lost a rank may abort its process while it is taken down


def in_ranks(work, folder, ranks=2):
    """What `work(rank, folder)` returns on each rank: tensors, numbers, strings and containers of them."""
    spawned(_work, (work, str(folder), ranks), ranks)
    return [torch.load(f"{folder}/found-{rank}", weights_only=True) for rank in range(ranks)]


def spawned(work, arguments, ranks):
    """Run `work(rank, *arguments)` in as many processes, which may not hang."""
    processes = start_processes(work, arguments, nprocs=ranks, join=False, start_method=server.get_start_method())
    deadline = time.monotonic() + SECONDS
    try:
        while not processes.join(timeout=1):
            assert time.monotonic() < deadline, "the ranks hang"
    finally:
        for process in processes.processes:
            process.kill()


def outcome(function, *arguments):
    """What a call raises, its message, and the seconds it took."""
    start = time.monotonic()
    try:
        function(*arguments)
        raised = ("nothing", "")
    except (Exception, KeyboardInterrupt) as error:
        raised = (type(error).__name__, str(error))
    return *raised, time.monotonic() - start
