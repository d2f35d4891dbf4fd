"""Kernels on disk are those that its code makes: also after a change in a file that theirs only calls."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import skeletal

CALLER = """
from skeletal.engine.codegen.compiling import compiled
from skeletal.engine.kernels.callee import value

@compiled
def kernel():
    return value()
"""
CALLEE = """
from skeletal.engine.codegen.compiling import compiled

@compiled
def value():
    return {}
"""
RUN = "from skeletal.engine.kernels.caller import kernel; print(kernel(), sum(kernel.stats.cache_hits.values()))"


def test_a_kernel_is_compiled_anew_when_what_it_calls_has_changed(tmp_path):
    package = tmp_path / "skeletal"
    shutil.copytree(Path(skeletal.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    kernels = package / "engine" / "kernels"
    (kernels / "caller.py").write_text(CALLER)

    def run(value):
        (kernels / "callee.py").write_text(CALLEE.format(value))
        environment = os.environ | {"PYTHONPATH": str(tmp_path), "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
        done = subprocess.run(
            [sys.executable, "-c", RUN], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return done.stdout.split()

    assert run(1) == ["1", "0"]
    assert run(1) == ["1", "1"]
    assert run(2) == ["2", "0"]
    (package / "engine" / "report.py").write_text("'no part of any kernel'")
    assert run(2) == ["2", "1"]
