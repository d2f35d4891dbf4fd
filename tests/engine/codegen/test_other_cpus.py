"""The engine's code as other CPUs have it: run by this one, where it can; for ARM, made.

Each in a process of its own, as numba and the width of vectors are settled when they load. Whole kernels take minutes
to compile, for each CPU anew; what they are made of takes seconds.
"""

import json
import os
import platform
import subprocess
import sys

import pytest

from skeletal.engine.codegen.target import host_features

_AVX2 = "+avx,+avx2,+fma,+f16c,+bmi,+bmi2"
_AVX512 = f"{_AVX2},+avx512f,+avx512vl,+avx512bw,+avx512dq,+avx512cd"
CPUS = {
    "haswell": _AVX2,
    "skylake-avx512": _AVX512,
    "znver4": f"{_AVX512},+avx512bf16",
}
HERE = [cpu for cpu, needs in CPUS.items() if all(host_features().get(name[1:]) for name in needs.split(","))]


def samples(cpu, *arguments):
    environment = os.environ | {"NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": CPUS.get(cpu, "+sse4.2,+ssse3,+popcnt")}
    command = [sys.executable, "-m", "tests.engine.codegen.samples", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def assert_right(found):
    assert found["turned"] and not found["matrix unit"]
    single, half = found["off"]["torch.float32"], found["off"]["torch.bfloat16"]
    assert max(single.values()) < 1e-6
    tile, sums = half.pop("tile"), half.pop("sums")  # of cells that are held for many readers, each a bit off
    assert max(half.values()) <= 2**-8 and max(tile, sums) < 0.02


@pytest.mark.parametrize("cpu", HERE)
def test_computes_what_torch_does(cpu):
    found = samples(cpu)
    assert_right(found)
    assert found["lanes"] == (16 if "avx512f" in CPUS[cpu] else 8)
    single, half = range(2)
    assert not found["rounds"][single] and bool(found["rounds"][half]) == ("avx512bf16" in CPUS[cpu])
    assert all(bool(count) == ("avx512f" in CPUS[cpu]) for count in found["wide"])
    assert all(bool(count) == ("fma" in CPUS[cpu]) for count in found["fused"])


@pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="runs code for x86 before")
def test_compiles_for_arm():
    """Tables and numbers without what x86 alone has, by vectors of 128 bits; then ARM's machine code of the same."""
    found = samples("x86-64-v2", "arm")
    assert_right(found)
    assert found["lanes"] == 8
    assert len(found["arm"]) == 2 and all(count > 8 and not x86 for count, x86 in found["arm"])
