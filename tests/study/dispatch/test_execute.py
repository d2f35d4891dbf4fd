import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from skeletal.core.errors import BusyError
from skeletal.harness.store.folders import RunFolder
from skeletal.study.dispatch.execute import forget_failures, walk
from skeletal.study.paper.collect import ERROR


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
