import json
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from skeletal.core.errors import BusyError
from skeletal.harness.config import Pruning, Setup, Training, resolve
from skeletal.harness.store.folders import RunFolder
from skeletal.study.dispatch.execute import forget_failures, walk
from skeletal.study.paper.collect import ERROR
from skeletal.study.paper.jobs import Job


@dataclass
class Fake:
    """A job that takes no time."""

    name: str
    wrong: Exception | None = None
    done: list = field(default_factory=list)

    def folder(self, root):
        return RunFolder.find(root, self.name, {"name": self.name})

    def run(self, root):
        self.done.append(self.name)
        if self.wrong:
            raise self.wrong
        RunFolder.open(root, self.name, {"name": self.name}).finish({"name": self.name})


def test_every_job_is_done_once_and_a_second_walk_finds_nothing_to_do(tmp_path):
    jobs = [Fake("a"), Fake("b")]
    told = []
    walk(jobs, tmp_path, told=lambda name, state: told.append((name[0], state)))
    walk(jobs, tmp_path)
    assert [job.done for job in jobs] == [["a"], ["b"]]
    assert told == [("a", "started"), ("a", "finished"), ("b", "started"), ("b", "finished")]


@pytest.mark.parametrize("wrong, said", [
    (ValueError("no such network"), "no such network"),
    (KeyError("x"), "KeyError: 'x'"),
    (RuntimeError("CUDA out of memory"), "RuntimeError: CUDA out of memory"),
])  # fmt: skip
def test_a_run_that_raises_is_recorded_and_does_not_stop_the_rest(tmp_path, wrong, said):
    failing, other = Fake("a", wrong), Fake("b")
    walk([failing, other], tmp_path)
    assert other.done == ["b"]
    file = failing.folder(tmp_path).path / ERROR
    told = json.loads(file.read_text())
    assert told["message"] == said and told["type"] == type(wrong).__name__
    assert "in run" in told["traceback"] and told["when"]

    walk([failing, other], tmp_path)
    assert failing.done == ["a"], "tried again without being asked"
    failing.wrong = None
    forget_failures([failing, other], tmp_path)
    assert not file.exists()
    walk([failing, other], tmp_path)
    assert failing.folder(tmp_path).finished and other.done == ["b"]


def test_an_interrupt_is_no_failure(tmp_path):
    jobs = [Fake("a", KeyboardInterrupt()), Fake("b")]
    with pytest.raises(KeyboardInterrupt):
        walk(jobs, tmp_path)
    assert jobs[1].done == [] and not (jobs[0].folder(tmp_path).path / ERROR).exists()


HOLD = """
import sys
from pathlib import Path
from skeletal.harness.store.folders import RunFolder

with RunFolder.find(Path(sys.argv[1]), "a", {"name": "a"}).claim():
    print("claimed", flush=True)
    sys.stdin.read()
"""


def test_what_another_process_has_claimed_is_left_to_it(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "claimed\n"
    jobs = [Fake("a"), Fake("b")]
    try:
        walk(jobs, tmp_path)
        assert [job.done for job in jobs] == [[], ["b"]]
    finally:
        holder.kill()
        holder.communicate()
    walk(jobs, tmp_path)
    assert jobs[0].done == ["a"], "the claim of a killed process still stands"


def test_a_job_whose_holder_has_died_meanwhile_is_taken_at_the_end(tmp_path, monkeypatch):
    jobs = [Fake("a"), Fake("b")]
    claim, busy = RunFolder.claim, [True]

    def once_busy(folder, **options):
        if folder.config["name"] == "a" and busy:
            busy.pop()
            raise BusyError("busy")
        return claim(folder, **options)

    monkeypatch.setattr(RunFolder, "claim", once_busy)
    walk(jobs, Path(tmp_path))
    assert [job.done for job in jobs] == [["a"], ["b"]] and not busy


def test_trainings_of_the_same_network_are_done_together_and_others_by_themselves(tmp_path):
    setup, training = Setup(device="cpu"), resolve(Training(epochs=1, batch_size=512, engine="dense"), "quick")
    random = resolve(Pruning(method="random", density=0.05), "quick")
    trained = [Job(replace(setup, seed=seed), random, training) for seed in (0, 1)]
    failing = Job(replace(setup, seed=2), random, replace(training, lr=1e30))
    jobs = [trained[0], Job(setup, random, None), trained[1], failing]
    told = []
    walk(jobs, tmp_path, told=lambda name, state: told.append((name, state)), together=3)
    names = [job.folder(tmp_path).path.name for job in jobs]
    assert told[:3] == [(names[k], "started") for k in (0, 2, 3)]  # side by side
    assert sorted(told[3:6]) == sorted([(names[0], "finished"), (names[2], "finished"), (names[3], "failed")])
    assert told[6:] == [(names[1], "started"), (names[1], "finished")]
    assert "learning rate 1e+30" in json.loads((tmp_path / names[3] / ERROR).read_text())["message"]
    walk(jobs, tmp_path, told=lambda name, state: told.append((name, state)), together=3)
    assert len(told) == 8
