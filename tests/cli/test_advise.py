import json
from itertools import product
from pathlib import Path
from shutil import rmtree

import pytest

from skeletal.cli import app
from tests.harness.data.layouts import pixels, write_image

FEW = (
    "--methods",
    "snip",
    "--densities",
    0.1,
    "--densities",
    0.01,
    "--seeds",
    1,
    "--measure-batches",
    1,
    "--device",
    "cpu",
)


def test_advice_as_text_with_a_picture(cli):
    done = cli("advise", *FEW, "--plot", "advice.svg")
    assert done.status == 0, done.err
    assert "snip: prune to density 0.1 (90% sparsity) and no further: at 0.01 " in done.out
    assert "advice.svg" in done.err
    again = cli("advise", *FEW, "--json").json
    assert again["methods"]["snip"]["density"] == 0.1
    assert [line["density"] for line in again["methods"]["snip"]["lines"]] == [0.1, 0.01]
    refused = cli("advise", *FEW, "--trained", "runs")
    assert refused.status == 1 and "no finished runs of these methods and of the dense network" in refused.err


def batches(root="runs"):
    """Of every sweep: its method, steps and batches of each."""
    configs = [json.loads(file.read_text()) for file in Path(root).rglob("config.json")]
    keys = ("method", "steps", "batches_per_step")
    return sorted(tuple(c[key] for key in keys) for c in configs if c["method"] != "dense")


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize(
    ("given", "found"),
    [
        (["--steps", 2], [("force", 2, 1), ("snip", 1, 1), ("snip", 1, 2)]),
        (["--steps", 2, "--batches-per-step", 3], [("force", 2, 3), ("snip", 1, 3), ("snip", 1, 6)]),
    ],
)
def test_snip_mb_sees_as_many_batches_as_force(cli, given, found):
    assert cli("advise", *FEW, "--methods", "force", "--methods", "snip-mb", *given).status == 0
    assert batches() == found


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize(("given", "found"), [([], {"px"}), (["--methods", "snip"], {"snip"})])
def test_the_method_of_a_file_is_the_one_looked_at_unless_others_are_named(cli, given, found):
    Path("my.toml").write_text('method = "px"\nsteps = 2\n')
    assert cli("advise", "--config", "my.toml", *FEW[2:], *given).status == 0
    assert {method for method, _, _ in batches()} == found


@pytest.mark.usefixtures("narrow")
def test_what_it_leaves_is_no_training(cli):
    assert cli("advise", *FEW).status == 0
    assert "no runs in runs" in cli("compare", "runs").err
    shown = cli("show", "runs")
    assert shown.status == 0 and "Traceback" not in shown.err
    trained = cli("run", "--method", "snip", "--density", 0.1, "--epochs", 1, "--batch-size", 512, "--device", "cpu")
    assert trained.status == 0 and cli("compare", "runs").out.count("snip") == 2  # in the heading, and as a row


@pytest.mark.usefixtures("narrow")
def test_the_time_left_is_that_of_this_sessions_sweeps(cli, heard):
    assert cli("advise", *FEW).status == 0
    next(Path("runs/advise").glob("*/result.json")).unlink()
    heard.clear()
    assert cli("advise", *FEW).status == 0
    first = next(line for line in heard if line.startswith("sweeps: 1 of 2, "))
    assert "left" not in first and any(line.startswith("sweeps: 2 of 2, ") for line in heard)


@pytest.mark.usefixtures("all_busy")
def test_what_another_process_works_on_is_waited_for_by_the_user(cli):
    done = cli("advise", *FEW)
    assert done.status == 1 and "2 runs are being worked on by another process: wait for it" in done.err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--best-of", 2], "advice follows one mask down to each density"),
        (["--density", 0.1], "name them with --densities"),
        (["--sparsity", 0.9], "name them with --densities"),
        (["--method", "magnitude"], "name them, or one, with --methods, not --method"),
        (["--method=force"], "name them, or one, with --methods, not --method"),
        (["--densities", 1.5], "density is 1.5"),
        (["--methods", "forc"], "unknown method 'forc'. Did you mean 'force'"),
        (["--seeds", 0], "at least one method, one density and one seed"),
        (["--densities", 1e-9, "--methods", "snip", "--seeds", 1, "--device", "cpu"], "keeps none of 471,584"),
    ],
)
def test_mistakes(cli, arguments, message):
    done = cli("advise", *arguments)
    assert done.status == 1 and message in done.err.replace("\n", " ")


def test_both_commands_are_listed():
    assert {"advise", "sanity"} <= set(app)


def test_advice_on_other_data_of_the_same_name_is_not_given_from_memory(cli):
    few = (*FEW[:-6], "--seeds", 1, "--measure-batches", 1, "--model", "vgg-mini", "--data", "pets", "--image-size", 8,
           "--prune-batch-size", 4, "--workers", 0, "--device", "cpu")  # fmt: skip
    for classes in ("ab", "cd"):
        for part, name, number in product(("train", "val"), classes, range(8)):
            write_image(Path("pets") / part / name / f"{number}.png", pixels(8, 8, 3))
        done = cli("advise", *few)
        assert (done.status == 0) == (classes == "ab"), done.err
        rmtree("pets")
    assert "is a run of the same settings on something else (the data was" in done.err.replace("\n", " ")
