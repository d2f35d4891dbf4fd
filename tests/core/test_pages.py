import ctypes
import os
import subprocess
import sys

import pytest
import torch

import skeletal
from skeletal.core.pages import keep_pages
from tests.cases import convnet, images

GLIBC = hasattr(ctypes.CDLL(None), "mallopt") if os.name == "posix" else False

FAULTS = """
import resource, sys, torch
from skeletal.core.pages import keep_pages

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(2**24)  # 64 MB, 16 thousand pages of 4 kB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
with keep_pages():
    faults()
    inside = faults()
print(inside, faults())
"""


@pytest.mark.skipif(not GLIBC, reason="only glibc's malloc is told")
def test_memory_is_mapped_once_inside_and_given_back_after():
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    inside, after = map(int, done.stdout.split())
    assert inside * 10 < after


def test_no_mask_depends_on_it():
    plain = skeletal.prune(convnet(), images(), density=0.1, steps=3)
    with keep_pages():
        assert skeletal.prune(convnet(), images(), density=0.1, steps=3) == plain
    assert torch.ones(2**22).sum() == 2**22


def test_left_by_an_exception():
    with pytest.raises(KeyError), keep_pages():
        raise KeyError
