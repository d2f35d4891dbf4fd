import gc
import os
import tempfile

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tests' networks are tiny, and xdist runs two processes

# What the engine measures here is nobody else's business.
os.environ.setdefault("XDG_CACHE_HOME", tempfile.mkdtemp(prefix="skeletal-cache-"))

import pytest
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
