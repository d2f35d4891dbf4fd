"""The code of the documentation is run as it stands there, and prints what stands under it."""

import contextlib
import io
import os
import shlex
import subprocess
import sys
import warnings
from pathlib import Path
from unittest.mock import patch

import pytest

import skeletal
from skeletal.cli import app
from tests.pages import ROOT, blocks, same_output

DOCS = ROOT / "docs"
RUN = [
    DOCS / "tutorial.md",
    *sorted((DOCS / "howto").glob("*.md")),
    *sorted((DOCS / "migrate").glob("*.md")),
    ROOT / "CONTRIBUTING.md",
]
RUN = [page for page in RUN if any(block.language == "python" and block.run for block in blocks(page))]
NEEDS = {
    "transformers": "transformers",
    "trainer": "transformers",
    "onnx": "onnxruntime",
    "tensorboard": "tensorboard",
    "torchao-sparseml": "torchao",
}


def names(pages):
    return [str(page.relative_to(ROOT)) for page in pages]


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=names(RUN))
def test_code_prints_what_stands_under_it(page, tmp_path, monkeypatch):
    if page.stem in NEEDS:
        pytest.importorskip(NEEDS[page.stem])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # where the engine remembers what it measured
    with patch.dict(skeletal.METHODS):  # CONTRIBUTING adds one
        run_python(page)
    run_commands(page)


def run_python(page):
    globals_: dict = {"__name__": "page"}
    for block in blocks(page):
        if block.language != "python" or not block.run:
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(transformers|accelerate|torchao)\..*")
            exec(compile("\n" * (block.line - 1) + block.text, str(page), "exec"), globals_)
        if block.shown is not None:
            found = printed.getvalue()
            assert same_output(found, block.shown), f"{page.name}:{block.line} printed\n{found}not\n{block.shown}"


def run_commands(page):
    for block in blocks(page):
        if block.language != "console":
            continue
        printed = ""
        for line in block.text.splitlines():
            if line.startswith("$ "):
                assert line.startswith("$ skeletal "), line
                command = [sys.executable, "-m", *shlex.split(line[2:])]
                done = subprocess.run(
                    command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "100"}, timeout=300
                )
                assert done.returncode == 0, done.stderr
                printed += line + "\n" + done.stdout
        assert same_output(printed, block.text), f"{page.name}:{block.line} printed\n{printed}not\n{block.text}"


COMMANDS = [
    (str(page.relative_to(ROOT)), line)
    for page in [*sorted(DOCS.rglob("*.md")), ROOT / "CONTRIBUTING.md"]
    for block in blocks(page)
    if block.language == "bash"
    for line in block.text.replace("\\\n", " ").splitlines()
    if line.strip().startswith("skeletal ")
]


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=[f"{page}: {line.strip()}" for page, line in COMMANDS])
def test_commands_on_the_pages_are_understood(page, line, monkeypatch):
    words = shlex.split(line.partition(" #")[0].rstrip(" &;"))[1:]
    words = [
        word.replace("$density", "0.1").replace("$d", "0.1") for word in words if not word.startswith(("$S", ">", "|"))
    ]
    monkeypatch.setattr(app, "config", None)
    app.parse_args(words, exit_on_error=False, print_error=False)


def test_the_comparison_can_tell():
    shown = "kept 1,234 of 5,678 weights, 3.2 s\nrun folder: runs/a-0123abcd"
    assert same_output("kept 1,240 of 5,678  weights, 9.9 s\nrun folder: runs/a-ffffffff", shown)
    assert not same_output("kept 2,345 of 5,678 weights, 3.2 s\nrun folder: runs/a-0123abcd", shown)
    assert not same_output("lost 1,234 of 5,678 weights, 3.2 s\nrun folder: runs/a-0123abcd", shown)
    assert not same_output("kept 1,234 weights, 3.2 s\nrun folder: runs/a-0123abcd", shown)
    assert not same_output("accuracy 53.3%", "accuracy 97.5%")


def test_the_pages_whose_code_is_run_are_not_lost():
    assert len(RUN) >= 7
    assert Path(DOCS / "tutorial.md") in RUN and ROOT / "CONTRIBUTING.md" in RUN
