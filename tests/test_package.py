"""What a user installs: everything the package needs, and nothing else."""

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import skeletal

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src"


def tracked(*places):
    listed = subprocess.run(["git", "ls-files", *places], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return {name for name in listed.stdout.splitlines() if (ROOT / name).exists()}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Source archive, and the wheel made from it, as for a release; without a network."""
    pytest.importorskip("build")
    out = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--no-isolation", "-o", str(out), "."], cwd=ROOT, check=True)
    return out


# A demo of fewer pruning steps and densities, by the package that is found first.
DEMO = """
import sys, skeletal
from importlib import import_module
from skeletal.harness.config import PRESETS

PRESETS["quick"]["steps"] = 2
import_module("skeletal.cli.demo").DENSITIES = (0.1,)
print(skeletal.__file__)
sys.argv = ["skeletal", "demo", "--epochs", "1", "--out", "here"]
from skeletal.__main__ import main
main()
"""


def installed(archive: Path, target: Path, *code: str) -> str:
    """Install an archive by itself and run Python with it before everything else; what that printed."""
    pip = ["pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(target)]
    subprocess.run([sys.executable, "-m", *pip, str(archive)], check=True)
    environment = os.environ | {"PYTHONPATH": str(target)}
    done = subprocess.run(
        [sys.executable, *code], cwd=target.parent, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_wheel_is_installed_and_runs_the_demo(built, tmp_path):
    (wheel,) = built.glob("skeletal-*.whl")
    shown = installed(wheel, tmp_path / "site", "-c", DEMO)
    assert shown.splitlines()[0] == str(tmp_path / "site" / "skeletal" / "__init__.py")
    assert "dense, all 471,584 weights" in shown and (tmp_path / "here" / "demo.png").exists()


def test_the_source_archive_is_installed_too(built, tmp_path):
    (archive,) = built.glob("skeletal-*.tar.gz")
    assert installed(archive, tmp_path / "site", "-m", "skeletal", "--version").strip() == skeletal.__version__


def test_the_index_would_take_both(built):
    pytest.importorskip("twine")
    files = [str(file) for file in built.iterdir() if file.name.startswith("skeletal-")]
    done = subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *files], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("PASSED") == 2, done.stdout


def test_the_wheel_has_every_file_of_the_package_and_its_licence(built):
    (wheel,) = built.glob("skeletal-*.whl")
    assert wheel.name == f"skeletal-{skeletal.__version__}-py3-none-any.whl"
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.removeprefix("src/") for name in tracked("src")} <= names
    assert "skeletal/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    others = {
        name for name in names if not name.startswith(("skeletal/", f"skeletal-{skeletal.__version__}.dist-info/"))
    }
    assert not others
    assert not {name for name in names if name.endswith((".pyc", ".nbc", ".nbi", ".pt", ".safetensors"))}


def test_its_metadata_say_where_it_runs(built):
    (wheel,) = built.glob("skeletal-*.whl")
    archive = zipfile.ZipFile(wheel)
    (place,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
    metadata = archive.read(place).decode()
    assert "Requires-Python: >=3.11" in metadata
    for minor in (11, 12, 13):
        assert f"Classifier: Programming Language :: Python :: 3.{minor}" in metadata
    assert "License-Expression: MIT" in metadata
    for extra in ("run", "docs", "onnx", "tensorboard", "timm", "transformers", "dev"):
        assert f"Provides-Extra: {extra}" in metadata
    needed = re.findall(r"^Requires-Dist: ([\w-]+)([^;\n]*)$", metadata, re.MULTILINE)  # what stands under no extra
    assert {name for name, _ in needed} == {"torch", "safetensors", "numpy", "numba"}
    assert all("<" not in bounds for name, bounds in needed if name == "torch")


def test_the_source_archive_has_no_junk(built):
    (archive,) = built.glob("skeletal-*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "PKG-INFO"} <= names
    roots = {name.partition("/")[0] for name in names}
    assert roots <= {
        "src", "tests", "docs", "examples", "benchmarks", "pyproject.toml", "README.md", "LICENSE", "PKG-INFO",
        "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff", ".gitignore",
    }  # fmt: skip
    assert not {name for name in names if "__pycache__" in name or name.endswith((".safetensors", ".pt", ".nbc"))}
