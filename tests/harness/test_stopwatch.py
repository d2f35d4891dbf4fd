"""The memory of a process is its own, and a system that does not tell it is no reason to fail."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from skeletal.harness import stopwatch

CPU = torch.device("cpu")
PEAK = "import torch; from skeletal.harness.stopwatch import peak_memory; print(peak_memory(torch.device('cpu')))"
linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")


@linux
def test_the_peak_is_not_that_of_the_program_which_started_this_one():
    big = f"import subprocess, sys; held = b'1' * 2**30; subprocess.run([sys.executable, '-c', {PEAK!r}], check=True)"
    command = [sys.executable, "-c", big]
    assert 2**20 < int(subprocess.run(command, capture_output=True, check=True).stdout) < 2**30


@linux
def test_the_peak_contains_what_was_held_and_given_back():
    before = stopwatch.peak_memory(CPU)
    torch.ones(2**26 + before // 4)
    after = stopwatch.peak_memory(CPU)
    assert after >= before + 2**27
    stopwatch.Stopwatch(CPU)
    assert stopwatch.resident("VmRSS") <= stopwatch.peak_memory(CPU) < after


def test_a_system_that_does_not_tell(monkeypatch):
    monkeypatch.setattr(stopwatch, "resident", lambda what: None)
    assert stopwatch.Stopwatch(CPU).read().peak_memory > 0
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    assert stopwatch.Stopwatch(CPU).read().peak_memory == 0
