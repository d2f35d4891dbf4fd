"""Real workers on real runs, killed, interrupted and preempted; results are those of runs left alone."""

import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from submitit import LocalExecutor
from submitit.core.utils import UncompletedJobError

from skeletal.core.errors import BusyError
from skeletal.harness.store.folders import RunFolder
from skeletal.study.dispatch.execute import walk
from skeletal.study.dispatch.launch import _dealt, counts, launch, launch_one
from skeletal.study.items import ITEMS
from skeletal.study.paper.scales import SCALES
from skeletal.study.paper.select import select
from tests.timeless import timeless

EPOCHS = 3
SCALE = SCALES["smoke"].altered(epochs=EPOCHS, seeds=1)
STUDY = ("study", "run", "fig2", "--scale", "smoke", "--only", "b", "--methods", "FORCE", "--epochs", EPOCHS,
         "--seeds", 1)  # fmt: skip
JOBS = select([ITEMS["fig2"]], SCALE, panels=["b"], methods=["FORCE"])


def results(root):
    """What runs found, without how long it took."""
    found = {}
    for job in JOBS:
        result = job.folder(root).result()
        found[job.folder(root).path.name] = timeless(result)
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The results of the study, one run after the other in this process."""
    root, reports = tmp_path_factory.mktemp("undisturbed"), []
    assert launch(JOBS, root, executor="none", report=reports.append) == []
    assert reports[-1] == {"finished": len(JOBS)} and not (root / "logs").exists()
    return results(root)


def start(root, *options):
    """The command in a process group of its own, as a shell starts it."""
    words = [sys.executable, "-m", "skeletal", *map(str, STUDY), "--root", str(root), *map(str, options)]
    # SIGINT may be ignored where the tests run; a shell's foreground process has it.
    back = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    return subprocess.Popen(words, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **back)


def wait_for(what, seconds=120):
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)
    return found


def in_training(root):
    """A run that has a checkpoint and no result yet."""
    begun = (job.folder(root) for job in JOBS)
    return [f for f in begun if any((f.path / "checkpoint").glob("*")) and not f.finished]


def test_mistakes_are_refused_before_anything_starts(tmp_path):
    with pytest.raises(ValueError, match=r"unknown executor 'slrum'. Did you mean 'slurm'"):
        launch(JOBS, tmp_path, executor="slrum")
    with pytest.raises(ValueError, match="at least one worker, got 0"):
        launch(JOBS, tmp_path, workers=0)
    assert counts(JOBS, tmp_path) == {"left": len(JOBS)}


@pytest.mark.slow
def test_workers_divide_the_list(tmp_path, undisturbed):
    launch(JOBS, tmp_path, workers=2)
    assert results(tmp_path) == undisturbed
    logs = [file.read_text() for file in (tmp_path / "logs").glob("*_log.out")]
    assert len(logs) == 2
    for job in JOBS:
        taken = [log.count(f"started  {job.folder(tmp_path).path.name}") for log in logs]
        assert sorted(taken) == [0, 1], "a run was done twice"
    launch(JOBS, tmp_path, workers=2)
    assert len(list((tmp_path / "logs").glob("*_log.out"))) == 2, "workers were started for nothing"


@pytest.mark.slow
def test_killed_and_begun_again_it_ends_in_the_same_results(tmp_path, undisturbed):
    process = start(tmp_path, "--jobs", 2)
    caught = wait_for(lambda: in_training(tmp_path))
    os.killpg(process.pid, signal.SIGKILL)  # the command, submitit's controllers and both workers
    process.communicate()
    before = {folder.path.name: len(folder.metrics()) for folder in caught}
    left = counts(JOBS, tmp_path)["left"]
    assert left >= 1

    again = start(tmp_path, "--jobs", 2)
    out, err = again.communicate(timeout=300)
    assert again.returncode == 0, err.decode()
    assert f"{len(JOBS)} of {len(JOBS)} runs finished, 0 failed" in out.decode()
    assert results(tmp_path) == undisturbed
    for folder in caught:
        rows = folder.metrics()
        assert [row["epoch"] for row in rows] == list(range(EPOCHS)) and before[folder.path.name] >= 1
    assert not list(tmp_path.rglob(".*.tmp")), "drafts of killed writers were left"


@pytest.mark.slow
@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_ctrl_c_stops_every_worker_with_its_checkpoint_written(tmp_path, undisturbed, number):
    process = start(tmp_path, "--jobs", 2)
    wait_for(lambda: in_training(tmp_path))
    if number == "SIGHUP":
        os.killpg(process.pid, signal.SIGHUP)  # as a closed terminal: to submitit's controllers and workers, too
    else:
        os.kill(process.pid, signal.Signals[number])
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert not [job for job in JOBS if job.folder(tmp_path).running], "a worker lives on"
    assert counts(JOBS, tmp_path)["failed"] == 0
    walk(JOBS, tmp_path)
    assert results(tmp_path) == undisturbed


FAKES = {
    "sbatch": """cp "$1" "$SLURM_FAKE/script.sh"; echo "Submitted batch job 7" """,
    "srun": """while [[ $1 == --* ]]; do [[ $1 == --unbuffered ]] || shift; shift; done
echo $$ > "$SLURM_FAKE/step"; exec "$@" """,
    "scontrol": """echo "$@" >> "$SLURM_FAKE/said" """,
}


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A cluster that takes jobs and leaves it to the test to run them."""
    place = tmp_path / "cluster"
    place.mkdir()
    for name, body in FAKES.items():
        (place / name).write_text(f"#!/bin/bash\n{body}\n")
        (place / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_FAKE", str(place))
    return place


def node(cluster, task=None):
    """Run the submitted script as a node would."""
    environment = os.environ | {"SLURM_JOB_ID": "7" if task is None else str(8 + task)}
    if task is not None:
        environment |= {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": str(task)}
    return subprocess.Popen(["bash", cluster / "script.sh"], env=environment, start_new_session=True)


def test_a_worker_that_dies_is_told_with_its_log(tmp_path, monkeypatch):
    class Died:
        job_id, paths = "7", SimpleNamespace(stderr="logs/7_0_log.err")

        def done(self):
            return True

        def exception(self):
            return UncompletedJobError("killed")

    monkeypatch.setattr(LocalExecutor, "submit", lambda self, worker: Died())
    with pytest.raises(ChildProcessError, match=r"before its time \(its log: logs/7_0_log.err\); the same"):
        launch(JOBS, tmp_path)


@pytest.mark.parametrize("visible, device, dealt", [
    ("3,GPU-1a2b", "auto", ["3", "GPU-1a2b"]),
    ("3,GPU-1a2b", "cuda:1", ["3,GPU-1a2b"]),
    (None, "cuda", ["0", "1"]),
    (None, "cpu", ["0,1"]),
    ("", "auto", [""]),
])  # fmt: skip
def test_gpus_are_dealt_out_unless_one_is_named(monkeypatch, visible, device, dealt):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert _dealt(device) == dealt


def test_without_slurm_the_error_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="there is no Slurm here"):
        launch(JOBS, tmp_path / "studies", executor="slurm")


@pytest.mark.slow
def test_on_slurm_workers_are_an_array(tmp_path, undisturbed, cluster):
    root = tmp_path / "studies"
    options = {"partition": "long", "time": "90", "cpus-per-task": "2"}
    assert launch(JOBS, root, executor="slurm", workers=2, slurm=options) == ["7_0", "7_1"]
    script = (cluster / "script.sh").read_text()
    for line in ("array=0-1%2", "partition=long", "time=90", "cpus-per-task=2", "signal=USR2@90"):
        assert f"#SBATCH --{line}\n" in script
    nodes = [node(cluster, task) for task in (0, 1)]
    assert [process.wait(timeout=300) for process in nodes] == [0, 0]
    assert results(root) == undisturbed


@pytest.mark.slow
def test_a_preempted_run_is_requeued_and_goes_on(tmp_path, undisturbed, cluster):
    root = tmp_path / "runs"
    job = JOBS[0]
    assert launch_one(job, root, executor="slurm") == ["7"]
    process = node(cluster)
    folder = wait_for(lambda: in_training(root))[0]
    os.kill(int((cluster / "step").read_text()), signal.SIGUSR2)  # as Slurm does: the step, not the script
    process.wait(timeout=120)
    assert (cluster / "said").read_text() == "requeue 7\n"
    assert not folder.finished and len(folder.metrics()) >= 1
    assert node(cluster).wait(timeout=300) == 0
    assert json.loads((folder.path / "result.json").read_text())["epochs"] == EPOCHS
    assert timeless(folder.result()) == undisturbed[folder.path.name]


@pytest.mark.slow
def test_one_run_in_a_process_of_its_own(tmp_path, monkeypatch, undisturbed):
    monkeypatch.setattr("skeletal.study.dispatch.launch.cores", lambda: 1)  # more threads round differently
    monkeypatch.setattr("sys.argv", ["skeletal", "run", "--executor", "local"])
    assert launch_one(JOBS[0], tmp_path, executor="local") == []
    folder = JOBS[0].folder(tmp_path)
    assert json.loads((folder.path / "environment.json").read_text())["command"] == sys.argv
    assert timeless(folder.result()) == undisturbed[folder.path.name]


def test_one_run_that_fails_raises_what_went_wrong(tmp_path, monkeypatch):
    def fail(root, error):
        folder = RunFolder.find(root, "x", {})
        folder.path.mkdir(parents=True)
        (folder.path / "error.json").write_text(json.dumps({"message": error}))
        return folder

    class Failed:
        setup = JOBS[0].setup

        def folder(self, root):
            return RunFolder.find(root, "x", {})

    monkeypatch.setattr("skeletal.study.dispatch.launch.launch", lambda jobs, root, **_: fail(root, "no data") and [])
    with pytest.raises(ValueError, match="no data"):
        launch_one(Failed(), tmp_path, executor="local")


def test_one_run_that_another_process_works_on_is_said_to_be_busy(tmp_path, monkeypatch):
    submitted = []
    monkeypatch.setattr("skeletal.study.dispatch.launch.launch", lambda jobs, root, **_: submitted)  # passed over
    with pytest.raises(BusyError, match="1 run is being worked on by another process: wait for it"):
        launch_one(JOBS[0], tmp_path, executor="local")
    submitted.append("7")
    assert launch_one(JOBS[0], tmp_path, executor="slurm") == ["7"]
