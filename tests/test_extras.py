"""What `pip install skeletal` brings is enough for the library; what it does not bring is asked for by name."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "skeletal"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SMALL = {"torch", "safetensors", "numpy", "numba", "llvmlite"}  # numba is built on llvmlite
IMPORTED_AS = {"pillow": "PIL", "scikit-learn": "sklearn", "mlflow-skinny": "mlflow"}


def packages(requirements: list[str]) -> set[str]:
    names = {re.split(r"[\[<>=; ]", requirement)[0] for requirement in requirements}
    return {IMPORTED_AS.get(name, name) for name in names}


EXTRAS = {name: packages(wanted) for name, wanted in PROJECT["optional-dependencies"].items()}


def foreign_imports(file: Path) -> list[tuple[str, str | None, int]]:
    """Each package imported beyond the small install, the extra it is imported `with`, and the line."""
    found = []

    def walk(node: ast.AST, extra: str | None) -> None:
        match node:
            case ast.With(items=[ast.withitem(ast.Call(ast.Name("extra"), [ast.Constant(str(name))]))]):
                extra = name
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        for root in {name.partition(".")[0] for name in names}:
            if root not in SMALL | {"skeletal"} | sys.stdlib_module_names:
                found.append((root, extra, node.lineno))
        for child in ast.iter_child_nodes(node):
            walk(child, extra)

    walk(ast.parse(file.read_text()), None)
    return found


def test_the_small_install_is_small():
    assert packages(PROJECT["dependencies"]) == SMALL - {"llvmlite"}
    (numba,) = [wanted for wanted in PROJECT["dependencies"] if wanted.startswith("numba")]
    assert "<" in numba  # the engine uses its internals
    assert "torch>=2.9" in PROJECT["dependencies"]  # without a cap


@pytest.mark.parametrize("file", sorted(SOURCE.rglob("*.py")), ids=lambda file: str(file.relative_to(SOURCE)))
def test_every_other_package_is_imported_with_the_extra_that_brings_it(file):
    for package, extra, line in foreign_imports(file):
        if file.is_relative_to(SOURCE / "cli"):
            extra = extra or "run"  # all of the command is: see cli/__init__.py
        assert extra is not None, f"line {line} imports {package}: put it under `with extra(...)`"
        assert package in EXTRAS[extra], f"line {line}: the extra {extra} does not bring {package}"


def test_the_rule_above_sees_imports():
    found = {package for file in SOURCE.rglob("*.py") for package, _, _ in foreign_imports(file)}
    assert EXTRAS["run"] <= found  # and nothing stands in the extra that nobody imports


HIDE = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HIDDEN:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hidden())
""".replace("HIDDEN", repr(EXTRAS["run"] | EXTRAS["timm"] | EXTRAS["transformers"]))


def without_extras(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own in which no extra is installed."""
    return subprocess.run([sys.executable, "-c", HIDE + code, *arguments], capture_output=True, text=True)


def test_the_library_works_without_any_extra():
    done = without_extras("""
import torch, skeletal
from torch import nn

model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))
batches = [(torch.randn(4, 3, 8, 8), torch.arange(4))]
mask = skeletal.prune(model, batches, density=0.2, steps=3)
mask.attach(model)
skeletal.diagnose(model, mask, batches[0][0]), skeletal.compact(model, mask, batches[0][0]), skeletal.compile
network = skeletal.models.create("lenet5", in_channels=1, image_size=28)
print(mask.kept, network(torch.zeros(1, 1, 28, 28)).shape[1])
""")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(round(0.2 * (3 * 8 * 9 + 8 * 36 * 10))), "10"]


@pytest.mark.parametrize("arguments", [(), ("--help",), ("run", "--density", "0.1")])
def test_the_bare_command_says_which_extra_to_install(arguments):
    done = without_extras("from skeletal.__main__ import main; main()", *arguments)
    assert done.returncode == 1 and done.stdout == ""
    assert re.fullmatch(r"error: this needs \w+, which is not installed: pip install 'skeletal\[run\]'\n", done.stderr)


def test_every_name_of_the_command_is_that_entrance():
    assert PROJECT["scripts"] == {"skeletal": "skeletal.__main__:main"}


@pytest.mark.parametrize(
    ("code", "package", "extra"),
    [
        ("import skeletal.cli", "cyclopts", "run"),
        ("import skeletal.harness.runs.experiment", "rich", "run"),
        ("from skeletal.harness import data; data.load('digits')", "sklearn", "run"),
        ("import skeletal.integrations.huggingface", "transformers", "transformers"),
    ],
)
def test_a_part_that_needs_an_extra_names_it(code, package, extra):
    done = without_extras(f"from skeletal.core.extras import MissingExtraError\ntry:\n    {code}\n"
                          "except MissingExtraError as error:\n    print(error.name, error)")  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = f"{package} this needs {package}, which is not installed: pip install 'skeletal[{extra}]'"
    assert done.stdout.strip() == said


def test_networks_of_a_library_that_is_not_here_are_unknown_and_the_extra_is_named():
    done = without_extras("import importlib.util as u\n"
                          "found = u.find_spec\n"
                          "u.find_spec = lambda name: None if name in ('torchvision', 'timm') else found(name)\n"
                          "import skeletal; skeletal.models.create('resnet50')")  # fmt: skip
    assert "unknown network 'resnet50'" in done.stderr
    assert "torchvision's networks: pip install 'skeletal[run]'" in done.stderr


def test_the_library_loads_nothing_beside_torch_and_numba():
    """The roots in sys.modules, as `python -X importtime` shows them."""

    def roots(statement: str) -> set[str]:
        code = f"{statement}\nimport sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        return set(done.stdout.split())

    ours = "skeletal.prune, skeletal.Mask, skeletal.diagnose, skeletal.compact, skeletal.compile, skeletal.models"
    theirs = roots("import torch, numpy, numba, numba.extending, safetensors.torch")
    beside = roots(f"import skeletal; {ours}") - theirs - {"skeletal"} - sys.stdlib_module_names
    assert not {name for name in beside if not name.startswith("_")}
