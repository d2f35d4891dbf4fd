"""`skeletal study`: run, list, print and plan, at the smallest scale."""

import csv
import subprocess
import sys

import pytest

FEW = ("fig7", "--scale", "smoke", "--only", "d", "--methods", "FORCE")  # two measurements
HERE = ("--executor", "none", "--device", "cpu")


@pytest.fixture
def ran(cli):
    """The command, after those two runs."""
    first = cli("study", "run", *FEW, *HERE)
    assert first.status == 0, first.err
    assert "2 of 2 runs finished, 0 failed, in studies" in first.out
    return cli


def test_a_finished_study_is_only_read(ran):
    again = ran("study", "run", *FEW, *HERE, "--json").json
    assert again["runs"] == again["finished"] == 2 and again["errors"] == {} and again["submitted"] == []


def test_the_time_left_is_that_of_this_sessions_runs(ran, heard, tmp_path):
    """A run of an earlier session took no time in this one."""
    next((tmp_path / "studies").glob("*/result.json")).unlink()
    assert ran("study", "run", *FEW, *HERE).status == 0
    first = next(line for line in heard if line.startswith("runs: 1 of 2, "))
    assert "left" not in first and any(line.startswith("runs: 2 of 2, ") for line in heard)


def test_list_tells_what_is_done(ran):
    listed = ran("study", "list", "--scale", "smoke", "--json").json
    items = {line["item"]: line for line in listed["items"]}
    assert len(items) == 15 and "the numbers mean nothing" in listed["about"]
    assert (items["fig7"]["finished"], items["fig7"]["runs"], items["fig7"]["state"]) == (2, 12, "begun")
    assert items["fig7"]["seconds"] > 0 and items["table3"]["state"] == "needs no run"
    shown = ran("study", "list", "--scale", "smoke").out
    assert "2/12" in shown and "What is left in each layer at 99%" in shown
    assert ran("study", "list", "--scale", "smoke", "--seeds", "1", "--json").json["items"][6]["finished"] == 1


def test_tables_are_printed_and_written(ran, tmp_path):
    printed = ran("study", "table", "fig7", "--scale", "smoke", "--trace")
    assert printed.status == 0 and "(2) |" in printed.out and "vgg-mini-digits-force-0.01-measured-" in printed.out
    assert "| FORCE: paper, Table 1 |" in ran("study", "table", "1", "--scale", "paper").out
    assert ran("study", "table", "3").out == ran("study", "table", "table3").out
    said = ran("study", "table", "fig7", "--scale", "smoke", "--format", "csv", "--out", "fig7.csv")
    assert said.out == "written to fig7.csv\n"
    again = ran("study", "table", "fig7", "--scale", "smoke", "--format", "csv", "--out", "fig7.csv", "--overwrite")
    assert again.status == 0
    lines = list(csv.DictReader((tmp_path / "fig7.csv").read_text().splitlines()))
    assert {line["n"] for line in lines} == {"2"} and lines[0]["item"] == "fig7"


@pytest.mark.slow
def test_the_report_is_built(ran, tmp_path):
    out = ran("study", "report", "--scale", "smoke", "--out", "report")
    assert out.status == 0, out.err
    page = tmp_path / out.out.strip()
    assert page.is_file() and "vgg-mini on digits" in page.read_text()


def test_failures_are_told_once_and_tried_again(cli, tmp_path):
    (tmp_path / "empty").mkdir()
    command = ("study", "run", "fig7", "--scale", "cpu", "--only", "d", "--methods", "SNIP", *HERE)
    failed = cli(*command, "--data-dir", "empty")
    assert failed.status == 1
    assert failed.out.count("failed: vgg19-cifar-cifar10-snip-0.001-measured-") == 1
    assert "and 1 more: cifar10 is not here" in failed.out and "0 of 2 runs finished, 2 failed" in failed.out
    assert len(list((tmp_path / "studies").glob("*/error.json"))) == 2
    listed = cli("study", "list", "--scale", "cpu", "--json").json["items"][6]
    assert (listed["failed"], listed["state"]) == (2, "failed in part")


def test_the_plan_runs_nothing(cli, tmp_path):
    planned = cli("study", "run", "fig2", "--scale", "smoke", "--plan", "shell", "--data-dir", "D")
    assert planned.status == 0 and len(planned.out.splitlines()) == 28
    assert all(line.startswith("skeletal run --model ") and "--data-dir D" in line for line in planned.out.splitlines())
    script = cli("study", "run", "fig7", "--scale", "smoke", "--plan", "array").out
    assert script.startswith("#!/bin/bash\n") and script.count("\nskeletal study measure ") == 12
    assert not (tmp_path / "studies").exists()


def test_help_answers_without_torch_and_shows_examples(cli):
    code = """
import sys
from skeletal.cli import main

for command in ([], ["run"], ["list"], ["table"], ["report"], ["measure"]):
    sys.argv = ["skeletal", "study", *command, "--help"]
    try:
        main()
    except SystemExit:
        pass
    heavy = {"torch", "torchvision", "numpy", "matplotlib", "submitit"} & set(sys.modules)
    assert not heavy, f"{command} loads {heavy}"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for command in ("run", "list", "table", "report", "measure"):
        assert f"skeletal study {command} " in cli("study", command, "--help").out


def test_measuring_one_mask(cli):
    told = cli("study", "measure", "--method", "snip", "--density", "0.1", "--prune-batch-size", "32", "--json").json
    assert told["kept"] == round(0.1 * told["prunable"]) and told["force_saliency"] > 0
    said = cli("study", "measure", "--method", "snip", "--density", "0.1", "--prune-batch-size", "32").out
    assert "vgg-mini on digits, snip: kept 47,158 of 471,584 weights" in said and told["folder"] in said


@pytest.mark.parametrize("arguments, said", [
    (["run", "fig12"], ["'fig12'", "fig2"]),
    (["run", "fig2", "--scale", "gpus"], ["gpus", "gpu"]),
    (["run", "fig2", "--only", "x"], ["'x'", "a, b"]),
    (["run", "fig2", "--methods", "forse"], ["'forse'", "FORCE"]),
    (["run", "fig3", "--scale", "smoke"], ["fig3", "smoke", "study list"]),
    (["run", "fig2", "--jobs", "0"], ["at least one worker", "0"]),
    (["run", "fig2", "--epochs", "0"], ["epochs", "at least 1"]),
    (["run", "fig2", "--executor", "slurm"], ["no Slurm", "--executor local"]),
    (["table", "5"], ["'table5'", "table4"]),
])  # fmt: skip
def test_mistakes_name_the_thing_and_the_remedy(cli, arguments, said, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    shown = cli("study", *arguments)
    assert shown.status != 0
    message = " ".join((shown.out + shown.err).split())
    for part in said:
        assert part in message
    assert "Traceback" not in message


@pytest.mark.slow
def test_run_in_a_process_of_its_own_and_as_a_job(cli, tmp_path):
    words = ("run", "--method", "random", "--epochs", "1", "--batch-size", "512", "--engine", "dense",
             "--device", "cpu", "--name", "mine")  # fmt: skip
    there = cli(*words, "--executor", "local", "--json").json
    assert there["folder"].startswith("runs/mine-") and there["epochs"] == 1
    assert cli(*words, "--json").json == there
    refused = cli(*words, "--executor", "slurm", "--seed", "1")
    assert refused.status == 1 and "there is no Slurm here" in refused.err
