import json

import pytest

from skeletal.study.dispatch.execute import record_failure
from skeletal.study.items import ITEMS
from skeletal.study.paper import collect
from skeletal.study.paper.scales import SCALES
from tests.study.finished import finish, trained

SMOKE = SCALES["smoke"]


def test_points_are_what_finished_runs_measured(tmp_path):
    cells = [cell for cell in ITEMS["fig2"].cells(SMOKE) if cell.panel == "b" and cell.series == "FORCE"]
    for number, cell in enumerate(cells):
        finish(cell.job, tmp_path, trained(50.0 + number))
    points = collect.points(ITEMS["fig2"], SMOKE, tmp_path)
    assert [(p.panel, p.series, p.x, p.y, p.seed) for p in points] == [
        ("b", "FORCE", 0.1, 50.0, 0),
        ("b", "FORCE", 0.1, 51.0, 1),
        ("b", "FORCE", 0.01, 52.0, 0),
        ("b", "FORCE", 0.01, 53.0, 1),
    ]
    for point in points:
        config = json.loads((tmp_path / point.run / "config.json").read_text())
        assert (config["density"], config["seed"], config["method"]) == (point.x, point.seed, "force")
    assert collect.points(ITEMS["fig2"], SCALES["cpu"], tmp_path) == []


def test_dense_stands_at_density_1(tmp_path):
    (cell, *_) = [cell for cell in ITEMS["fig2"].cells(SMOKE) if cell.series == "Dense"]
    finish(cell.job, tmp_path, trained(98.0))
    ((x, y),) = [(p.x, p.y) for p in collect.points(ITEMS["fig2"], SMOKE, tmp_path)]
    assert (x, y) == (1.0, 98.0)


def test_gains_are_divided_by_the_same_seeds_one_shot_result(tmp_path):
    cells = [cell for cell in ITEMS["fig5"].cells(SMOKE) if cell.panel == "a" and cell.series == "99%"]
    one_shot = {cell.baseline.setup.seed: cell.baseline for cell in cells}
    assert {job.pruning.method for job in one_shot.values()} == {"snip"}
    finish(one_shot[0], tmp_path, {"force_saliency": 4.0})
    finish(one_shot[1], tmp_path, {"force_saliency": 0.0})  # no path is left: nothing to compare with
    for cell in cells:
        if cell.job.pruning.method == "force":
            finish(cell.job, tmp_path, {"force_saliency": 6.0})
    points = collect.points(ITEMS["fig5"], SMOKE, tmp_path)
    assert {(p.series, p.x, p.y, p.seed) for p in points if p.panel == "a"} == {("99%", 1, 1.0, 0), ("99%", 3, 1.5, 0)}


def test_a_gain_waits_for_its_baseline(tmp_path):
    cell = next(cell for cell in ITEMS["fig5"].cells(SMOKE) if cell.job.pruning.method == "force")
    finish(cell.job, tmp_path, {"force_saliency": 6.0})
    assert collect.points(ITEMS["fig5"], SMOKE, tmp_path) == []


def test_numbers_that_are_none_are_left_out(tmp_path):
    cell = next(cell for cell in ITEMS["fig6"].cells(SMOKE) if cell.panel == "a")
    finish(cell.job, tmp_path, {"force_saliency": float("nan"), "gradient_norm": 1.0})
    assert [p.panel for p in collect.points(ITEMS["fig6"], SMOKE, tmp_path)] == ["b"]


def test_state_counts_finished_running_failed_and_missing(tmp_path):
    jobs = ITEMS["fig1"].jobs(SMOKE)
    assert collect.state(ITEMS["fig1"], SMOKE, tmp_path) == dict(finished=0, running=0, failed=0, missing=len(jobs))
    finish(jobs[0], tmp_path, trained(90.0))
    failed = jobs[1].folder(tmp_path)
    record_failure(failed.path / collect.ERROR, ValueError("no such data"))
    with jobs[2].folder(tmp_path).claim():
        found = collect.state(ITEMS["fig1"], SMOKE, tmp_path)
    assert found == dict(finished=1, running=1, failed=1, missing=len(jobs) - 3)
    assert collect.failures(ITEMS["fig1"], SMOKE, tmp_path) == {failed.path.name: "no such data"}


def test_a_damaged_result_is_named(tmp_path):
    folder = finish(ITEMS["fig1"].jobs(SMOKE)[0], tmp_path, trained(90.0))
    (folder.path / "result.json").write_text("{")
    with pytest.raises(ValueError, match=r"result.json is damaged"):
        collect.points(ITEMS["fig1"], SMOKE, tmp_path)


def test_runs_on_two_data_sets_of_one_name_are_told(tmp_path):
    cells = [cell for cell in ITEMS["fig2"].cells(SMOKE) if cell.panel == "b" and cell.series == "FORCE"]
    for number, cell in enumerate(cells):
        folder = finish(cell.job, tmp_path, trained(50.0))
        file = folder.path / "environment.json"
        copy = {"fingerprint": {"data": f"{'ab'[number // 3]} ({90 + number} examples)"}}
        file.write_text(json.dumps(json.loads(file.read_text()) | copy))
    with pytest.warns(UserWarning, match="fig2: runs on .* were done on 2 different data sets of that name, such as"):
        assert len(collect.points(ITEMS["fig2"], SMOKE, tmp_path)) == 4


@pytest.mark.parametrize("content", ["", "{}", "[1]"])
def test_a_run_that_failed_for_a_reason_that_is_lost_has_failed(tmp_path, content):
    folder = ITEMS["fig1"].jobs(SMOKE)[0].folder(tmp_path)
    folder.path.mkdir(parents=True)
    (folder.path / collect.ERROR).write_text(content)
    (told,) = collect.failures(ITEMS["fig1"], SMOKE, tmp_path).values()
    assert told == f"nobody knows why: {folder.path / collect.ERROR} is damaged"
