"""Every example runs as it stands, without a warning, and prints what its description promises."""

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import skeletal

EXAMPLES = Path(__file__).parent.parent / "examples"
NEEDS = {"transformer": "transformers", "huggingface_trainer": "transformers", "export_onnx": "onnxruntime"}
ARGUMENTS = {"tiny_gpt": ["--quick"]}
LINES = {"tiny_gpt": 150}  # brings a network, a training loop and a choice of its own; 40 elsewhere
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py"))


def number(pattern, text):
    found = re.search(pattern, text)
    assert found, f"{pattern!r} is not in what was printed:\n{text}"
    return float(found[1].replace(",", ""))


def prune_and_train(shown):
    assert number(r"kept ([\d,]+) of 471,584", shown) == round(0.02 * 471_584)
    assert number(r"test accuracy ([\d.]+)%", shown) > 80
    assert "result.json" in shown and "mask.safetensors" in shown


def own_loop(shown):
    assert number(r"kept ([\d,]+) of 28,960", shown) == round(0.05 * 28_960)
    assert number(r"test accuracy ([\d.]+)%", shown) > 75


def transformer(shown):
    assert number(r"step 200 +loss ([\d.]+)", shown) < 0.3 < number(r"step +0 +loss ([\d.]+)", shown)
    assert "9 layers" in shown  # without queries, keys and classifier


def compile_for_cpu(shown):
    assert "same outputs: True" in shown
    assert number(r"masked (\d+) ms", shown) and number(r"compiled (\d+) ms", shown)


def export_onnx(shown):
    assert number(r"compact ([\d,]+)", shown) < number(r"parameters: ([\d,]+)", shown)
    assert number(r"masked model: (\S+)", shown) < 1e-4


def compare_methods(shown):
    rows = dict(re.findall(r"^([\w-]+) +4,716 .*  (yes|no)$", shown, re.MULTILINE))
    assert set(rows) == set(skeletal.METHODS)
    assert rows["force"] == rows["synflow"] == "yes"


def huggingface_trainer(shown):
    assert number(r"kept ([\d,]+) of 69,760", shown) == 6976
    assert number(r"^loss ([\d.]+)", shown.splitlines()[-1]) < 0.3


def tiny_gpt(shown):
    assert number(r"kept ([\d,]+) of 27,648", shown) == round(0.01 * 27_648)
    for name in ("dense", "masked", "compiled"):
        assert (
            number(rf"{name} +step +20 +train ([\d.]+)", shown)
            < 3.7
            < number(rf"{name} +step +0 +train ([\d.]+)", shown)
        )
    masked, compiled = (number(rf"{name} +step +20 .*validation ([\d.]+)", shown) for name in ("masked", "compiled"))
    assert compiled == pytest.approx(masked, abs=0.01)  # the same steps, to rounding
    assert number(r"compiled +(\d+) ms a step", shown) and "the compiled network writes" in shown


CHECKS = {
    check.__name__: check
    for check in (
        prune_and_train, own_loop, transformer, compile_for_cpu, export_onnx, compare_methods, huggingface_trainer,
        tiny_gpt,
    )
}  # fmt: skip


def test_every_example_is_looked_at():
    assert sorted(CHECKS) == NAMES


RUN = """
import contextlib, io, json, runpy, sys

shown = {}
for name, path, *arguments in json.loads(sys.argv[1]):
    sys.argv = [path, *arguments]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        runpy.run_path(path, run_name="__main__")
    shown[name] = out.getvalue()
print(json.dumps(shown))
"""


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """What each example prints, run one after the other in one new process, where torch is loaded once."""
    here = [name for name in NAMES if name not in NEEDS or find_spec(NEEDS[name])]
    calls = json.dumps([[name, str(EXAMPLES / f"{name}.py"), *ARGUMENTS.get(name, ())] for name in here])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", RUN, calls],
        cwd=tmp_path_factory.mktemp("examples"), capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_runs(name, shown):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    CHECKS[name](shown[name])


@pytest.mark.slow
def test_the_notebook_runs_and_shows_tables_and_pictures():
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(EXAMPLES / "first_steps.ipynb", as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells)  # as it is committed
    nbclient.NotebookClient(notebook, timeout=120).execute()
    shown = [output.data for cell in cells for output in cell.outputs if "data" in output]
    assert sum("text/html" in data for data in shown) == 3 and sum("image/png" in data for data in shown) == 3
    assert any(data["text/plain"] == "True" for data in shown)  # compacted, the outputs are the same
    said = "".join(output.text for cell in cells for output in cell.outputs if "text" in output)
    assert number(r"([\d,]+) of 471,584 weights kept", said) == round(0.02 * 471_584)
    assert number(r"test accuracy ([\d.]+)%", said) > 80
    assert not [output for cell in cells for output in cell.outputs if output.get("name") == "stderr"]


@pytest.mark.parametrize("name", NAMES)
def test_it_is_short_and_says_what_it_shows(name):
    lines = (EXAMPLES / f"{name}.py").read_text().splitlines()
    assert len(lines) <= LINES.get(name, 40)
    assert lines[0].startswith('"""')
