import gc
import os
import random
import signal
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tests' networks are tiny, and xdist runs two processes

# What the engine measures here is nobody else's business.
os.environ.setdefault("XDG_CACHE_HOME", tempfile.mkdtemp(prefix="skeletal-cache-"))

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as under nohup, which commands of the tests would inherit
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

import numpy as np
import pytest
import torch
from hypothesis import settings

settings.register_profile("skeletal", deadline=None, max_examples=40, derandomize=True)
settings.load_profile("skeletal")


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Import everything first, then leave it out of every garbage collection: it stays, and to search it takes long."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """Every test and fixture draws the same whatever ran before it in its process, which xdist decides by timing."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


ORDER = ("cli/test_bench.py", "cli/", "study/", "", "compaction/", "engine/")


def pytest_collection_modifyitems(items):
    """What compiles all of the engine's kernels comes first, in one process; the others meet them late, compiled.

    The longest tests are not among the last, either, for which one process would wait for another.
    """

    def turn(item):
        place = item.path.relative_to(Path(__file__).parent).as_posix()
        return ORDER.index(max((start for start in ORDER if place.startswith(start)), key=len))

    items.sort(key=turn)
