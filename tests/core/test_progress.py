import io
import time

import pytest
import torch
from torch import nn

import skeletal
from skeletal.core import progress
from skeletal.core.progress import Lines, OneLine, duration, say, shown, stage


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """Everything a hundred times as fast."""
    monkeypatch.setattr(progress, "FIRST", 0.01)
    monkeypatch.setattr(Lines, "again", 0.05)
    monkeypatch.setattr(OneLine, "again", 0.05)


def told(make=Lines):
    stream = io.StringIO()
    return stream, shown(True, lambda: make(stream))


def test_work_that_never_comes_back_to_tell_is_spoken_of_again_and_again():
    stream, telling = told()
    with telling, stage("thinking"):
        time.sleep(0.3)
    lines = stream.getvalue().splitlines()
    assert 3 <= len(lines) <= 9 and all(line.startswith("thinking: ") for line in lines)


def test_what_is_over_soon_is_not_spoken_of(monkeypatch):
    monkeypatch.setattr(progress, "FIRST", 60)
    stream, telling = told()
    with telling, stage("outside"), stage("inside", 3) as inner:
        inner.update(3)
    assert stream.getvalue() == ""


def test_the_innermost_stage_speaks_with_its_steps_the_time_left_and_what_else_there_is():
    stream, telling = told()
    with telling, stage("outside", bar=False), stage("pruning", 4, unit="step", done=1) as inner:
        inner.update(2, note=lambda: "batch 7")
        time.sleep(0.05)
        inner.update(4)
    first, *_, last = stream.getvalue().splitlines()
    assert first.startswith("pruning: step 2 of 4, batch 7, 0.0 s")
    assert last.startswith("pruning: step 4 of 4, batch 7, ") and "left" not in last
    assert "outside" not in stream.getvalue()


class Clock:
    """A clock that stands until it is told to go on."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


def test_the_time_left_does_not_grow_while_a_step_takes_long(monkeypatch):
    clock = Clock(monkeypatch)
    with progress.Progress().stage("runs", 10, unit="run", done=2) as work:
        assert "left" not in str(work)
        clock.now += 20
        work.update(4)
        assert str(work) == "runs: run 4 of 10, 20.0 s, about 60.0 s left"
        clock.now += 15
        work.update(4, note="still")
        assert str(work).endswith("still, 35.0 s, about 45.0 s left")
        clock.now += 60
        assert str(work).endswith("still, 95.0 s")  # nobody knows


def test_a_step_that_is_named_is_told_by_its_number():
    with progress.Progress().stage("all", 2, unit="run", named=True) as work:
        said = []
        for done in range(3):
            work.update(done)
            said.append(str(work).partition(",")[0])
        assert said == ["all: run 1 of 2", "all: run 2 of 2", "all: run 2 of 2"] and work.count == "2/2"


def test_nobody_is_told_unless_shown_and_not_where_it_is_switched_off(capsys):
    with stage("alone"):
        say("alone")
        time.sleep(0.03)
    assert capsys.readouterr().err == ""
    stream, telling = told()
    with telling:
        say("heard")
        with shown(False), stage("silent"):
            say("silent")
            time.sleep(0.03)
        with shown(True, lambda: pytest.fail("there is somebody who tells")):
            say("again")
    assert stream.getvalue() == "heard\nagain\n"


def test_one_line_is_written_over_and_ends_with_a_new_line():
    stream, telling = told(OneLine)
    with telling, stage("compiling", 2) as work:
        time.sleep(0.03)
        work.update(1)
        time.sleep(0.1)
        work.update(2)
    text = stream.getvalue()
    assert text.count("\n") == 1 and text.endswith("\n") and text.startswith("\r")
    assert "█" * 24 in text.splitlines()[-1].split("\r")[-1]


def test_a_reader_who_has_gone_stops_nothing():
    stream, telling = told()
    stream.close()
    with telling, stage("working"):
        time.sleep(0.03)
        say("anything")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (99.94, "99.9 s"), (200, "3 min 20 s"), (7500, "2 h 5 min"), (2.5 * 86400, "2.5 days")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_prune_tells_how_far_it_is(capsys):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 4))
    batches = [(torch.randn(16, 8), torch.randint(4, (16,)))]
    plain = skeletal.prune(model, batches, density=0.3, steps=4)
    assert capsys.readouterr().err == ""
    wait = {"density": 0.3, "steps": 4, "on_step": lambda step: time.sleep(0.03)}
    assert skeletal.prune(model, batches, progress=True, **wait) == plain
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("pruning, force: step 4 of 4, ") and len(lines) > 2
