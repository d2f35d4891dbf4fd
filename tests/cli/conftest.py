import json
import sys
import warnings
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import pytest

from skeletal.cli import app, main
from skeletal.core.errors import BusyError
from skeletal.core.progress import Progress, Stage, shown
from skeletal.harness.models.factory import NAMES
from skeletal.harness.models.vgg import vgg
from skeletal.harness.store.folders import RunFolder


class Outcome(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.status == 0, self.err
        return json.loads(self.out)  # raises unless stdout is one document and nothing else


@pytest.fixture
def cli(tmp_path, monkeypatch, capsys):
    """Run `skeletal` with these arguments, in an empty folder and in this process; what a user would see of it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(app, "config", None)  # as in a new process
    for part in (app, app.meta):  # cyclopts keeps the console it has made first, of whatever width
        monkeypatch.setattr(part, "_fallback_console", None)
        monkeypatch.setattr(part, "_fallback_error_console", None)
    monkeypatch.setattr("skeletal.core.progress.FIRST", 1e6)  # a busy machine's delays are no part of what is said

    def skeletal(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["skeletal", *map(str, arguments)])
        status: Any = 0
        capsys.readouterr()
        with warnings.catch_warnings():
            warnings.simplefilter("always", UserWarning)  # to be shown, as to a user; all others are errors
            warnings.filterwarnings("ignore", message="Cyclopts application invoked without tokens under unit-test")
            try:
                main()
            except SystemExit as stopped:
                status = stopped.code or 0
        return Outcome(status, *capsys.readouterr())

    return skeletal


@pytest.fixture
def narrow(monkeypatch):
    """vgg-mini, the default, with a quarter of its channels: for tests that run many networks, and any would do."""
    build = partial(vgg, (8, 8, "M", 16, 16, 16, "M", 32, 32, 32))
    monkeypatch.setitem(NAMES, "vgg-mini", replace(NAMES["vgg-mini"], build=build))


class Heard(Progress):
    """Everything that stages say, as lines."""

    def __init__(self) -> None:
        self.lines_said: list[str] = []

    def changed(self, stage: Stage) -> None:
        self.lines_said.append(str(stage))


@pytest.fixture
def heard():
    """What stages say while they go on."""
    with shown(True, Heard) as progress:
        yield progress.lines_said


@pytest.fixture
def all_busy(monkeypatch):
    """Another process works on every run."""

    @contextmanager
    def busy(folder, **_):
        raise BusyError("busy")
        yield

    monkeypatch.setattr(RunFolder, "claim", busy)
