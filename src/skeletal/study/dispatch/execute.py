"""Doing the jobs: every worker walks the whole list and takes what is neither finished nor claimed by another.

There is no queue and no master. A job is claimed by a lock that dies with its process, a finished one is known by its
result, so that any number of workers, started at any time and on any machine that sees the folder, share a study; and
killing them costs what they had not yet written: at most an epoch of each training.
"""

import gc
import json
import os
import signal
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from skeletal.core.errors import BusyError, CollapseWarning
from skeletal.core.extras import extra
from skeletal.core.files import write_atomically
from skeletal.study.paper.collect import ERROR
from skeletal.study.paper.jobs import Job

Told = Callable[[str, str], None]
"""called with the name of a run folder and what has become of it: started, finished, failed"""


def walk(jobs: Sequence[Job], root: Path, *, told: Told = lambda name, state: None) -> None:
    """Do what nobody has done and nobody is doing; return when there is nothing left to take.

    A job that raises leaves `error.json` in its folder and does not stop the others; jobs that have one are not
    taken: `forget_failures` allows another try. A collapsed mask is a result, not a failure.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM; what the job under way has done is kept.

    """
    busy = []
    for job in jobs:
        if not _take(job, root, told):
            busy.append(job)
    for job in busy:  # again, for those whose worker was killed meanwhile
        _take(job, root, told)


def _take(job: Job, root: Path, told: Told) -> bool:
    """Whether the job is no longer anybody's concern: done, now or earlier, or failed."""
    folder = job.folder(root)
    error = folder.path / ERROR
    if folder.finished or error.exists():
        return True
    try:
        with folder.claim():
            if folder.finished or error.exists():  # by the worker that had it until just now
                return True
            told(folder.path.name, "started")
            told(folder.path.name, _do(job, root, error))
            return True
    except BusyError:
        return False


def _do(job: Job, root: Path, error: Path) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CollapseWarning)  # the result says it
            job.run(root)
    except Exception as raised:
        record_failure(error, raised)
        return "failed"
    finally:
        _free_memory()
    return "finished"


def record_failure(path: Path, raised: Exception) -> None:
    """Leave a file that says what went wrong and when."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = type(raised).__name__
    message = str(raised) if isinstance(raised, ValueError | OSError) else f"{kind}: {raised}"  # as the command does
    told = {
        "message": message,
        "type": kind,
        "when": datetime.now().astimezone().isoformat(timespec="seconds"),
        "traceback": "".join(traceback.format_exception(raised)),
    }
    write_atomically(path, json.dumps(told, indent=2) + "\n")


def forget_failures(jobs: Sequence[Job], root: Path) -> None:
    """Let failed jobs be tried again."""
    for job in jobs:
        (job.folder(root).path / ERROR).unlink(missing_ok=True)


def _free_memory() -> None:
    # Several workers may share a GPU: what torch keeps for later they cannot have.
    import torch

    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


@dataclass(frozen=True)
class Worker:
    """One process of a study, as submitit starts it."""

    jobs: tuple[Job, ...]
    root: Path
    data_dir: Path | None
    device: str
    threads: int | None
    """of torch; `None`: what it finds"""
    gpus: str | None
    """those it sees, as CUDA_VISIBLE_DEVICES names them; `None`: those the cluster gave it"""

    def __call__(self) -> bool:
        """Walk the list. Returns whether it came to its end, and was not interrupted."""
        if self.gpus is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = self.gpus  # read when torch first asks for a GPU
        import torch

        if self.threads is not None:
            torch.set_num_threads(self.threads)
        signal.signal(signal.SIGTERM, _interrupt)  # training has its own, and ends its step first
        submit_again = _preempted_as_terminated()
        try:
            walk([job.placed(self.data_dir, self.device) for job in self.jobs], self.root, told=_log)
        except KeyboardInterrupt as stopped:
            print(stopped or "interrupted", flush=True)
            submit_again()
            return False
        return True

    def checkpoint(self) -> Any:
        """What submitit submits again when the cluster preempts: the same, as runs resume by themselves."""
        with extra("run"):
            from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt(f"interrupted by {signal.Signals(number).name}")


def _preempted_as_terminated() -> Callable[[], None]:
    """Let submitit's signal of preemption end the run in order, as SIGTERM does; what it did at once is returned."""
    number = signal.Signals[f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}"]
    submitits, came = signal.getsignal(number), []

    def terminate(number: int, frame: object) -> None:
        came.append(number)
        os.kill(os.getpid(), signal.SIGTERM)

    def submit_again() -> None:
        if came and callable(submitits):
            submitits(number, None)

    signal.signal(number, terminate)
    return submit_again


def _log(name: str, state: str) -> None:
    print(f"{datetime.now():%H:%M:%S} {state:8} {name}", flush=True)


def cores() -> int:
    """The number of processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
