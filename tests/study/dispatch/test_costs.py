import json
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from skeletal.core.diagnosis.macs import count_macs
from skeletal.core.model.weights import prunable_weights
from skeletal.harness import models
from skeletal.study.dispatch.costs import Cost, Costs, _rate, clock, said, total
from skeletal.study.items import ITEMS
from skeletal.study.paper.scales import SCALES
from skeletal.study.show.overview import overview
from tests.study.finished import finish, trained

SMOKE = SCALES["smoke"]


def job_of(item, series, density=None):
    cells = ITEMS[item].cells(SMOKE)
    return next(
        c.job for c in cells if c.series == series and density in (None, c.job.pruning.density) and c.panel != "a"
    )


def test_counted_from_multiply_adds_and_a_rate(tmp_path, monkeypatch):
    monkeypatch.setattr("skeletal.study.dispatch.costs._rate", lambda device: 1e9)
    model = models.create("vgg-mini", num_classes=10, in_channels=1, image_size=8)
    everything = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in prunable_weights(model).items()}
    macs = count_macs(model.eval(), everything, (torch.zeros(1, 1, 8, 8), torch.zeros(1))).forward_dense
    forward = 2 * macs / 1e9
    found = Costs(tmp_path).of(job_of("fig2", "FORCE", 0.1))  # 3 steps of 32 images; 1 epoch; the test images
    assert found.source == "unknown"  # so little, that most of the time goes elsewhere
    assert found.seconds == pytest.approx(forward * (3 * 3 * 32 + 3 * 1293 + 360), rel=0.01)
    assert Costs(tmp_path).of(job_of("fig2", "Random", 0.1)).seconds < found.seconds


def test_images_held_out_are_not_trained_on(tmp_path, monkeypatch):
    monkeypatch.setattr("skeletal.study.dispatch.costs._rate", lambda device: 1e9)
    job = job_of("fig2", "Random", 0.1)
    whole = replace(job, setup=replace(job.setup, validation=0.0))
    costs = Costs(tmp_path)
    assert costs.of(whole).seconds / costs.of(job).seconds == pytest.approx(
        (3 * 1437 + 360) / (3 * 1293 + 360), rel=1e-3
    )


def test_finished_runs_of_the_same_network_are_better_known(tmp_path, monkeypatch):
    monkeypatch.setattr("skeletal.study.dispatch.costs._rate", lambda device: 1e9)
    done, other, random = (job_of("fig2", *which) for which in (("FORCE", 0.1), ("FORCE", 0.01), ("Random", 0.1)))
    finish(done, tmp_path, trained(90.0))  # 6 s of pruning, 10 s an epoch, tests included
    costs = Costs(tmp_path)
    assert costs.of(done) == Cost(6 + 10, "measured")
    assert costs.of(other) == Cost(6 + 10, "measured")
    assert costs.of(random) == Cost(10, "measured")
    assert costs.of(job_of("fig2", "SNIP", 0.1)).source == "counted"  # training is known, its pruning is not
    finish(other, tmp_path, trained(90.0) | {"seconds": 3.0})
    assert Costs(tmp_path).of(other).seconds == 6 + 1  # its own density says more
    assert Costs(tmp_path).of(random).seconds == 5.5


def test_runs_of_another_machine_say_nothing_about_this_one(tmp_path, monkeypatch):
    monkeypatch.setattr("skeletal.study.dispatch.costs._rate", lambda device: 1e9)
    job = job_of("fig2", "FORCE", 0.1)
    file = finish(job, tmp_path, trained(90.0)).path / "environment.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"gpus": [{"name": "another", "memory_gib": 80}]}))
    assert Costs(tmp_path).of(job).source == "unknown"


def test_much_arithmetic_is_counted_though_nothing_has_run_here(tmp_path, monkeypatch):
    monkeypatch.setattr("skeletal.study.dispatch.costs._rate", lambda device: 1e7)
    found = Costs(tmp_path).of(job_of("fig2", "FORCE", 0.1))
    assert found.source == "counted" and found.seconds > 60


def test_what_stands_around_the_arithmetic_is_known_from_runs_here(tmp_path, monkeypatch):
    monkeypatch.setattr("skeletal.study.dispatch.costs._rate", lambda device: 1e9)
    done = job_of("fig2", "FORCE", 0.1)
    finish(done, tmp_path, trained(90.0) | {"wall_seconds": 30.0 + 6.0 + 14.0})  # training, pruning, the rest
    costs = Costs(tmp_path)
    assert costs.of(done) == Cost(6 + 10 + 14, "measured")
    assert costs.of(job_of("fig2", "Random", 0.1)) == Cost(10 + 14, "measured")


def test_what_is_said_of_it():
    measured, counted, unknown = Cost(90.0, "measured"), Cost(90.0, "counted"), Cost(2.0, "unknown")
    assert said([measured]) == "90 s" and said([measured, counted]) == "about 3.0 min" and said([]) == ""
    assert said([unknown]) == "unknown" and said([unknown, measured, counted]) == "more than 3.0 min"


def test_sums_are_measured_only_if_every_part_is():
    measured, counted = Cost(1.0, "measured"), Cost(2.0, "counted")
    assert total([measured, measured]) == Cost(2.0, "measured")
    assert total([measured, counted]) == Cost(3.0, "counted")
    assert total([measured, Cost(3.0, "unknown"), counted]) == Cost(6.0, "unknown")
    assert total([]) == Cost(0, "measured")


def test_the_rate_counts_every_operation_of_what_is_timed(monkeypatch):
    counted = []

    class Timed:
        """In place of torch's `Timer`: counts operations, and says that they took half a second."""

        median = 0.5

        def __init__(self, stmt, globals, num_threads):
            with FlopCounterMode(display=False) as counter:
                exec(stmt, globals)
            counted.append(counter.get_total_flops())
            assert num_threads == torch.get_num_threads()

        def blocked_autorange(self, min_run_time):
            return self

    monkeypatch.setattr("torch.utils.benchmark.Timer", Timed)
    assert _rate.__wrapped__("cpu") == counted[0] / 0.5 > 0


@pytest.mark.parametrize(
    "seconds, said",
    [(0.4, "0 s"), (99, "99 s"), (100, "1.7 min"), (900, "15 min"), (86_400, "24 h"), (9e5, "10 days")],
)
def test_durations_are_for_readers(seconds, said):
    assert clock(seconds) == said


def test_the_overview_has_every_item_with_its_state(tmp_path, monkeypatch):
    monkeypatch.setattr("skeletal.study.dispatch.costs._rate", lambda device: 1e9)
    for job in ITEMS["fig1"].jobs(SMOKE):
        finish(job, tmp_path, trained(90.0))
    lines = {line["item"]: line for line in overview(list(ITEMS.values()), SMOKE, tmp_path)}
    states = {name: line["state"] for name, line in lines.items()}
    assert states["fig1"] == "finished" and states["fig2"] == "begun" and states["fig7"] == "not run"
    assert states["fig3"] == "not at this scale" and states["table3"] == "needs no run"
    assert lines["fig1"]["to do"] == "" and lines["fig2"]["to do"] == "unknown"
    assert lines["fig2"]["runs"] == 28 and lines["fig2"]["finished"] == 14


def test_a_damaged_run_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("skeletal.study.dispatch.costs._rate", lambda device: 1e9)
    folder = finish(ITEMS["fig1"].jobs(SMOKE)[0], tmp_path, trained(90.0))
    (folder.path / "result.json").write_text("{")
    with pytest.raises(ValueError, match=r"result.json is damaged"):
        overview(list(ITEMS.values()), SMOKE, tmp_path)
