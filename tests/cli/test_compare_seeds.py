"""A seed is one value, however often it was run, and however far its budget took it."""

from pathlib import Path

import pytest

from skeletal.harness.comparison.compare import outcomes
from skeletal.harness.comparison.row import row_of
from skeletal.harness.output import accuracy
from skeletal.harness.store.folders import RunFolder
from tests.cli.test_results import folders, leave, with_cost


def test_a_seed_that_was_run_again_counts_once(cli):
    paths = [leave(f"runs/{i}", "force", 0.1, 0, 90.0, test_every=i) for i in range(4)]
    paths.append(leave("runs", "force", 0.1, 1, 70.0))
    ((mean, group),) = outcomes([row_of(RunFolder.at(path)) for path in paths])
    assert mean.accuracy == 80.0 and len(group) == 5


def test_seeds_that_a_budget_stops_after_different_epochs_are_one_point(cli):
    short = [(1_000, 50.0), (2_000, 60.0), (3_000, 70.0)], [(1_100, 15.0), (2_200, 20.0), (3_300, 95.0)]
    random = [
        with_cost(f"b/{seed}", "random", 0.1, seed, epochs[-1][1], 0, epochs) for seed, epochs in enumerate(short)
    ]
    steady = [(1_000, 40.0), (1_500, 50.0), (2_500, 60.0)]
    magnitude = [with_cost(f"b/{seed}", "magnitude", 0.1, seed, 60.0, 0, steady) for seed in (0, 1)]
    found = cli("compare", "b", "--at-most-macs", "3100", "--pareto", "--json")
    assert set(folders(found)) == set(map(str, magnitude))  # 60 for 2,500; random's mean is 45 for 2,600
    within = cli("compare", "b", "--at-most-macs", "3100", "--filter", "accuracy>90")
    assert within.status == 1 and "none of 4 runs meets accuracy>90" in within.err  # as the table shows them
    assert folders(cli("compare", "b", "--filter", "accuracy>90", "--json")) == [str(random[1])]


def test_a_setting_that_no_run_left_has_is_still_known(cli):
    leave("runs", "force", 0.1, 0, 90.0)
    done = cli("compare", "runs", "--filter", "method=snip", "--filter", "lr=0.1")
    assert done.status == 1 and "none of 1 runs meets method=snip and lr=0.1" in done.err


def test_one_seed_has_no_bar(monkeypatch):
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    results = [(0.1, 90.0), (0.1, 92.0), (0.01, 80.0)]
    accuracy.draw_accuracy(axes, [{"method": "force", "density": d, "test": {"top1": a}} for d, a in results])
    bars = [segment for lines in axes.collections for segment in lines.get_segments()]
    assert [bar[0][0] for bar in bars if len(bar) and bar[0][1] == bar[0][1]] == [0]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_is_json(cli, value):
    path = leave("runs", "force", 0.1, 0, 10.0)
    folder = RunFolder.at(path)
    folder.finish(folder.result() | {"test": {"top1": 10.0, "top5": 50.0, "loss": value}})
    for command in (("show", path), ("compare", Path("runs"))):
        out = cli(*command, "--json").out
        assert "NaN" not in out and "Infinity" not in out
