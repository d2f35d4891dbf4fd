from importlib import import_module
from pathlib import Path

import pytest
from matplotlib.image import imread

from skeletal.harness.config import PRESETS


@pytest.mark.slow
def test_demo(cli, monkeypatch):
    monkeypatch.setitem(PRESETS["quick"], "steps", 3)  # 60 would be most of this test's time
    monkeypatch.setattr(import_module("skeletal.cli.demo"), "DENSITIES", (0.1, 0.005))
    first = cli("demo", "--epochs", "1", "--out", "here")
    assert first.status == 0, first.err
    for part in ("90% pruned", "99.5% pruned", "force", "snip", "random", "dense, all 471,584 weights"):
        assert part in first.out
    assert "no path left" in first.out  # snip at 99.5%
    assert "warning" not in first.err
    assert imread("here/demo.png").shape[2] == 4
    before = {file: file.stat().st_mtime_ns for file in Path("here").glob("*/*")}
    assert sum(file.name == "result.json" for file in before) == 7

    again = cli("demo", "--epochs", "1", "--out", "here")
    assert again.out == first.out
    printed = cli("demo", "--epochs", "1", "--out", "here", "--json").json
    assert len(printed["results"]) == 7 and printed["figure"] == "here/demo.png"
    assert {file: file.stat().st_mtime_ns for file in Path("here").glob("*/*")} == before
    kept = {(result["method"], result.get("kept")) for result in printed["results"]}
    assert kept == {("dense", None)} | {(m, k) for m in ("force", "snip", "random") for k in (47_158, 2_358)}


@pytest.mark.usefixtures("narrow")
def test_the_time_left_is_that_of_this_sessions_runs(cli, heard, monkeypatch):
    monkeypatch.setattr(import_module("skeletal.cli.demo"), "METHODS", ("random",))
    monkeypatch.setattr(import_module("skeletal.cli.demo"), "DENSITIES", (0.1, 0.005))
    assert cli("demo", "--epochs", "1").status == 0
    next(Path("runs/demo").glob("*random-0.1-*/result.json")).unlink()
    heard.clear()
    assert cli("demo", "--epochs", "1").status == 0
    told = [line for line in heard if line.startswith("prune, train, test: run ")]
    assert ["left" in line for line in told] == [False] * len(told)
    assert [line.split()[4] for line in told] == ["3", "3", "3", "3"]
