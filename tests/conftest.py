import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tests' networks are tiny, and xdist runs two processes

from hypothesis import settings

settings.register_profile("skeletal", deadline=None, max_examples=40, derandomize=True)
settings.load_profile("skeletal")
