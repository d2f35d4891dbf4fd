"""Doing the jobs: every worker walks the whole list and takes what is neither finished nor claimed by another.

There is no queue and no master. A job is claimed by a lock that dies with its process, a finished one is known by its
result, so that any number of workers, started at any time and on any machine that sees the folder, share a study; and
killing them costs what they had not yet written: at most an epoch of each training.
"""

import gc
import json
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
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


def walk(jobs: Sequence[Job], root: Path, *, told: Told = lambda name, state: None, together: int = 1) -> None:
    """Do what nobody has done and nobody is doing; return when there is nothing left to take.

    With `together`, so many trainings of the same network at a time take turns in this process.

    A job that raises leaves `error.json` in its folder and does not stop the others; jobs that have one are not
    taken: `forget_failures` allows another try. A collapsed mask is a result, not a failure.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM; what the job under way has done is kept.

    """
    for group in _groups(jobs, root, together):
        _take_together(group, root, told)
    busy = []
    for job in jobs:
        if not _take(job, root, told):
            busy.append(job)
    for job in busy:  # again, for those whose worker was killed meanwhile
        _take(job, root, told)


def _take(job: Job, root: Path, told: Told) -> bool:
    """Whether the job needs no more attention: done, now or earlier, or failed."""
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


def _groups(jobs: Sequence[Job], root: Path, together: int) -> Iterator[list[Job]]:
    """The remaining trainings of the same network on the same batches, so many at a time; never fewer than two."""
    alike: dict[Any, list[Job]] = {}
    for job in jobs if together > 1 else ():
        if type(job) is Job and job.training is not None and _is_left(job, root):
            training = job.training
            batches = training.batch_size, training.bf16, training.channels_last
            alike.setdefault((job.setup.model, job.setup.data, batches), []).append(job)
    for same in alike.values():
        for start in range(0, len(same), together):
            if len(group := same[start : start + together]) > 1:
                yield group


def _is_left(job: Job, root: Path) -> bool:
    folder = job.folder(root)
    return not (folder.finished or (folder.path / ERROR).exists())


def _take_together(jobs: list[Job], root: Path, told: Told) -> None:
    from skeletal.harness.runs.side_by_side import Settings, run_many

    jobs = [job for job in jobs if _is_left(job, root)]  # another worker may have done some meanwhile
    runs = [Settings(job.setup, job.pruning, job.training, job.name) for job in jobs if job.training is not None]
    folders = [job.folder(root).path for job in jobs]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)  # the results say it
        for number, outcome in run_many(runs, root=root, started=lambda number: told(folders[number].name, "started")):
            if isinstance(outcome, BusyError):
                continue
            if isinstance(outcome, Exception):
                record_failure(folders[number] / ERROR, outcome)
            told(folders[number].name, "failed" if isinstance(outcome, Exception) else "finished")
    _free_memory()


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
    # Several workers may share a GPU: they cannot have what torch keeps for later.
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
    together: int = 1
    """see `walk`"""
    command: tuple[str, ...] = field(default_factory=lambda: tuple(sys.argv))
    """what started it, which its runs record"""

    def __call__(self) -> bool:
        """Walk the list. Returns whether it came to its end, and was not interrupted."""
        sys.argv = list(self.command)
        if self.gpus is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = self.gpus  # read when torch first asks for a GPU
        import torch

        if self.threads is not None:
            torch.set_num_threads(self.threads)
        signal.signal(signal.SIGTERM, _interrupt)  # training has its own, and ends its step first
        submit_again = _preempted_as_terminated()
        try:
            placed = [job.placed(self.data_dir, self.device) for job in self.jobs]
            walk(placed, self.root, told=_log, together=self.together)
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
