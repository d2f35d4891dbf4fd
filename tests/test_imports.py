"""Imports point down and never in a circle, libraries stay in their rooms, the light entrances stay light."""

import subprocess
import sys
from pathlib import Path

import pytest

from skeletal.engine.codegen.compiling import MADE_OF
from tests.imports import circles, imports_of, modules_of

SOURCE = Path(__file__).parent.parent / "src" / "skeletal"

# The house, top floor first. A room may import itself and the floors below; rooms on the same floor do not know of each
# other. A package's own files ("x/*") have a floor, too: those of `core` and `harness` are the lowest of their package,
# those of `engine` the highest.
FLOORS = """
    skeletal/*
    cli
    study/beyond  study/show
    study/dispatch
    study/items
    study/paper
    study/*
    harness/bench
    harness/runs  harness/comparison
    harness/training
    harness/console
    harness/store  harness/models  harness/data  harness/output
    harness/*
    integrations
    engine/*
    engine/host
    engine/modules
    engine/ops
    engine/kernels
    engine/plan
    engine/codegen
    compaction/*
    compaction/rules
    compaction/tracing
    core/updates
    core/pruning/*
    core/pruning/criteria
    core/patterns
    core/diagnosis
    core/masks
    core/model/*
    core/model/state
    core/*
"""
FLOOR = {room: number for number, line in enumerate(FLOORS.split("\n")) for room in line.split()}
ONLY = {"core": ("torch", "safetensors"), "compaction": ("torch", "safetensors")}
DRAWING = ("skeletal.core.plots", ("matplotlib",))  # what `.plot()` needs, and the small install does not bring
LLVM = ("llvmlite.", "numba.core.")


def room_of(module: str) -> str:
    """The room that a module stands in: the folder's, or "x/*" of a package that has rooms and is none."""
    parts = module.split(".")[1:]
    for length in range(len(parts), 0, -1):
        for room in ("/".join(parts[:length]), "/".join(parts[:length]) + "/*"):
            if room in FLOOR:
                return room
    return "skeletal/*"


def upward(source: Path) -> list[str]:
    modules = modules_of(source)
    arrows = [(one, other) for one in modules for other in imports_of(one, modules) & modules.keys()]
    rooms = [(one, other, room_of(one), room_of(other)) for one, other in arrows]
    return [f"{one} -> {other}" for one, other, a, b in rooms if a != b and FLOOR[a] >= FLOOR[b]]


def in_circles(source: Path) -> list[list[str]]:
    modules = modules_of(source)
    return circles({one: imports_of(one, modules) & modules.keys() for one in modules})


def foreign(source: Path) -> list[str]:
    """Libraries that a room must not need."""
    modules = modules_of(source)
    wrong = []
    for one in modules:
        room = one.split(".")[1] if "." in one else ""
        allowed = {"skeletal", *ONLY.get(room, ()), *sys.stdlib_module_names}
        allowed |= set(DRAWING[1]) if one == DRAWING[0] else set()
        names = imports_of(one, modules)
        if room in ONLY:
            wrong += [f"{one} -> {name}" for name in names if name.split(".")[0] not in allowed]
        if room_of(one) != "engine/codegen":
            wrong += [f"{one} -> {name}" for name in names if f"{name}.".startswith(LLVM)]
    return wrong


def test_imports_point_down():
    assert not upward(SOURCE)


def test_no_modules_import_each_other_in_a_circle():
    assert not in_circles(SOURCE)


def test_core_and_compaction_need_torch_and_safetensors_only_and_llvm_stays_in_codegen():
    assert not foreign(SOURCE)


def test_kernels_are_made_of_what_their_stamp_is_of():
    """Whatever else they took a function or a number from could change without their being compiled anew."""
    modules = modules_of(SOURCE)
    rooms = {f"engine/{folder}" for folder in MADE_OF}
    for one in modules:
        if room_of(one) in ("engine/codegen", "engine/kernels"):
            assert {room_of(other) for other in imports_of(one, modules) & modules.keys()} <= rooms, one


def test_every_folder_is_a_room_that_says_what_it_is_for():
    for folder in SOURCE.rglob("*/"):
        if folder.name != "__pycache__" and any(folder.glob("*.py")):
            assert (folder / "__init__.py").read_text().startswith('"""'), folder
            name = str(folder.relative_to(SOURCE))
            assert name in FLOOR or f"{name}/*" in FLOOR, f"{name} has no floor"


TREE = {  # a small house, in order
    "__init__.py": '_HOME = {"prune": "skeletal.engine.top:prune"}',
    "core/low.py": "import torch",
    "core/masks/mask.py": "from skeletal.core import low",
    "engine/top.py": "from skeletal.core.masks.mask import Mask\nfrom skeletal.engine.codegen import ir",
    "engine/codegen/ir.py": "from numba.core import types",
    "study/show/draw.py": "import matplotlib",
    "study/beyond/advise.py": "import json",
}


@pytest.mark.parametrize(
    ("file", "code", "check"),
    [
        ("core/low.py", "from skeletal.engine.top import prune", upward),
        ("core/low.py", "import skeletal.core.masks.mask", upward),
        ("core/low.py", "import skeletal", upward),
        ("core/low.py", "from . import masks", upward),
        ("core/masks/mask.py", "def late():\n    from skeletal.engine import top", upward),
        ("core/masks/mask.py", 'import_module("skeletal.engine.top")', upward),
        ("core/masks/mask.py", 'TABLE = {"x": "skeletal.engine.top:prune"}', upward),
        ("engine/codegen/ir.py", "from skeletal.engine.top import prune", upward),
        ("study/show/draw.py", "from skeletal.study.beyond.advise import x", upward),
        ("core/low.py", "from skeletal.core.masks.mask import Mask", in_circles),
        ("core/masks/mask.py", 'import_module("skeletal.engine.top")', in_circles),
        ("core/low.py", "import numpy", foreign),
        ("core/low.py", "import matplotlib", foreign),
        ("core/low.py", 'importlib.import_module("numba")', foreign),
        ("core/low.py", "importlib.import_module(name)", foreign),
        ("core/masks/mask.py", "from scipy import sparse", foreign),
        ("engine/top.py", "import llvmlite", foreign),
        ("engine/top.py", "from numba.core import cgutils", foreign),
        ("engine/top.py", "from numba import core", foreign),
        ("engine/top.py", 'import_module("llvmlite.ir")', foreign),
    ],
)
def test_a_wrong_import_is_found(tmp_path, file, code, check):
    source = tmp_path / "skeletal"
    for name, text in TREE.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(text)
    (source / "core/masks/__init__.py").touch()
    assert not check(source)
    (source / file).write_text(f"{TREE[file]}\n{code}\n")
    assert check(source)


def loaded_by(statement: str) -> set[str]:
    code = f"{statement}\nimport sys; print(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_import_skeletal_is_light():
    assert not loaded_by("import skeletal") & {"torch"}
    heavy = {"torchvision", "matplotlib", "accelerate", "numba", "sklearn", "pyarrow", "timm"}
    loaded = loaded_by("import skeletal; skeletal.prune, skeletal.Mask, skeletal.models")
    assert not loaded & heavy
    assert {name for name in loaded if name.startswith("skeletal.engine.")} <= {
        f"skeletal.engine.{light}" for light in ("host", "host.availability", "host.cache", "host.processor", "prune")
    }
    assert "numba" not in loaded_by("from skeletal.harness.runs import experiment, review")  # for those who train dense
