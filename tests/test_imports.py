"""Imports point one way, and the light entrances stay light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "skeletal"
# Each may import what stands after it; core imports nothing else of ours.
ORDER = ["cli", "study", "harness", "engine", "core"]


def imported(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{file}: relative import"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("room", ORDER)
def test_imports_point_one_way(room):
    forbidden = [f"skeletal.{above}" for above in ORDER[: ORDER.index(room)]]
    for file in sorted((SOURCE / room).rglob("*.py")):
        wrong = [name for name in imported(file) if any(name == f or name.startswith(f + ".") for f in forbidden)]
        assert not wrong, f"{file.relative_to(SOURCE)} imports {wrong}"


def test_core_needs_torch_and_safetensors_only():
    allowed = {"torch", "safetensors", "skeletal", *sys.stdlib_module_names}
    for file in (SOURCE / "core").rglob("*.py"):
        roots = {name.split(".")[0] for name in imported(file)}
        assert roots <= allowed, f"{file.name}: {roots - allowed}"


def loaded_by(statement: str) -> set[str]:
    code = f"{statement}\nimport sys; print(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_import_skeletal_is_light():
    assert not loaded_by("import skeletal") & {"torch"}
    heavy = {"torchvision", "matplotlib", "accelerate", "numba", "sklearn", "pyarrow", "timm"}
    assert not loaded_by("import skeletal; skeletal.prune, skeletal.Mask, skeletal.models") & heavy
    assert "numba" not in loaded_by("from skeletal.harness.runs import experiment, review")  # for those who train dense
