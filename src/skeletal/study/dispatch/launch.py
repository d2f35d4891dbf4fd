"""Starting workers: in this process, as processes of this machine, or as jobs of a Slurm cluster (submitit)."""

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from skeletal.core.choices import require
from skeletal.core.errors import BusyError
from skeletal.core.extras import extra
from skeletal.harness.console.interrupt import ENDINGS, leave_closed_terminal
from skeletal.study.dispatch.execute import Worker, cores, forget_failures, walk
from skeletal.study.paper.collect import ERROR, error_of
from skeletal.study.paper.jobs import Job

EXECUTORS = ("local", "slurm", "none")
LOGS = "logs"
_YEAR = 60 * 24 * 365  # minutes; submitit's own limit is 2

Report = Callable[[Counter[str]], None]
"""called now and then with how many jobs are finished, failed and left"""


def refuse_slurm(slurm: Mapping[str, str] | None, executor: str) -> None:
    """Check that options of sbatch are not given to what does not call it.

    Raises:
        ValueError: they are.

    """
    if slurm and executor != "slurm":
        said = ", ".join(f"--slurm.{name}" for name in slurm)
        raise ValueError(f"--slurm.* needs --executor slurm: leave {said} out, or add it")


def counts(jobs: Sequence[Job], root: Path) -> Counter[str]:
    """How many jobs are finished, failed and left, by what lies in their folders."""
    return Counter(_outcome(job.folder(root).path) for job in jobs)


def _outcome(path: Path) -> str:
    if (path / "result.json").exists():
        return "finished"
    return "failed" if (path / ERROR).exists() else "left"


def launch(
    jobs: Sequence[Job],
    root: Path,
    *,
    executor: str = "local",
    workers: int = 1,
    together: int = 1,
    data_dir: Path | None = None,
    device: str = "auto",
    slurm: Mapping[str, str] = MappingProxyType({}),
    report: Report = lambda counted: None,
) -> list[str]:
    """Do the jobs that are not finished; those that failed earlier are tried again.

    Args:
        jobs: in the order in which they are taken.
        root: the folder of run folders; workers' logs go to `logs` in it.
        executor: "none" does them in this process, one after the other; "local" and "slurm" start workers.
        workers: how many; on this machine they share its cores and its GPUs evenly.
        together: how many trainings of the same network take turns in each of them, see `execute.walk`.
        data_dir: see `Setup`.
        device: see `Setup`.
        slurm: options of sbatch in submitit's spelling: partition, time (minutes), gpus_per_node, cpus_per_task.
        report: told how it goes.

    Returns:
        The ids of the cluster's jobs, which go on by themselves; empty for the other executors, which wait.

    Raises:
        ValueError: unknown executor, fewer than one worker, workers or options that it does not take, or no Slurm here.
        ChildProcessError: a worker ended early; says where its log is.
        KeyboardInterrupt: Ctrl-C, SIGTERM or SIGHUP, after the workers have written their checkpoints.

    """
    require("executor", executor, EXECUTORS)
    if workers < 1:
        raise ValueError(f"a study needs at least one worker, got {workers}")
    if together < 1:
        raise ValueError(f"together is {together}: a worker has at least one run at a time")
    if executor == "none" and workers > 1:
        raise ValueError("--jobs needs --executor local: with --executor none this process does everything")
    refuse_slurm(slurm, executor)
    root.mkdir(parents=True, exist_ok=True)
    forget_failures(jobs, root)
    root, data_dir = root.absolute(), data_dir and data_dir.absolute()
    paths = [job.folder(root).path for job in jobs]

    def look() -> Counter[str]:
        return Counter(map(_outcome, paths))

    if executor == "none":
        placed = [job.placed(data_dir, device) for job in jobs]
        walk(placed, root, told=lambda name, state: report(look()), together=together)
        return []
    left = look()["left"]
    if not left:
        return []
    workers = min(workers, left)
    if executor == "slurm":
        return _on_slurm(Worker(tuple(jobs), root, data_dir, device, None, None, together), workers, slurm)
    threads, gpus = max(1, cores() // workers), _dealt(device)
    crew = [Worker(tuple(jobs), root, data_dir, device, threads, gpus[k % len(gpus)], together) for k in range(workers)]
    _on_this_machine(crew, lambda: report(look()))
    return []


def _dealt(device: str) -> list[str]:
    """What workers see of the GPUs, in turn: one each, or all of them if one is named."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = [str(k) for k in range(torch.cuda.device_count())] if named is None else named.split(",")
    return gpus if device in ("auto", "cuda") and gpus else [",".join(gpus)]


def launch_one(job: Job, root: Path, *, executor: str, slurm: Mapping[str, str] = MappingProxyType({})) -> list[str]:
    """Do one job as `launch` does, on the data and device of its own setup.

    Raises:
        ValueError: the run has failed; says why. And what `launch` raises.
        BusyError: another process works on it.

    """
    setup = job.setup
    ids = launch([job], root, executor=executor, data_dir=setup.data_dir, device=setup.device, slurm=slurm)
    error = error_of(job.folder(root))
    if error is not None:
        raise ValueError(error)
    if not ids:
        refuse_unfinished([job], root)
    return ids


def refuse_unfinished(jobs: Sequence[Job], root: Path) -> None:
    """Check that jobs which workers have come back from are done: they pass over what another process works on.

    Raises:
        BusyError: some are neither finished nor failed; says how many, and what to do.

    """
    left = counts(jobs, root)["left"]
    if left:
        runs = "1 run is" if left == 1 else f"{left} runs are"
        raise BusyError(f"{runs} being worked on by another process: wait for it, then run the same command again")


def _on_slurm(worker: Worker, workers: int, options: Mapping[str, str]) -> list[str]:
    with extra("run"):
        from submitit import SlurmExecutor

    if SlurmExecutor.affinity() < 0:
        raise ValueError("there is no Slurm here (no srun on the PATH): --executor local runs on this machine")
    executor = SlurmExecutor(folder=worker.root / LOGS, max_num_timeout=100)
    typed = {name.replace("-", "_"): int(value) if value.isdigit() else value for name, value in options.items()}
    executor.update_parameters(**{"job_name": "skeletal-study", "time": 24 * 60, **typed})
    with executor.batch():
        jobs = [executor.submit(worker) for _ in range(workers)]
    return [job.job_id for job in jobs]


def _on_this_machine(crew: Sequence[Worker], report: Callable[[], None]) -> None:
    with extra("run"):
        from submitit import LocalExecutor

    executor = LocalExecutor(folder=crew[0].root / LOGS)
    executor.update_parameters(timeout_min=_YEAR)
    with _endings_interrupt():
        with _environment(OMP_NUM_THREADS=str(crew[0].threads)), _interrupts_ignored():
            jobs = [executor.submit(worker) for worker in crew]
        try:
            while any(not job.done() for job in jobs):
                report()
                time.sleep(0.5)
        except KeyboardInterrupt:
            _stop(jobs)
            raise
        finally:
            report()
    for job in jobs:
        error = job.exception()
        if error is not None:
            raise ChildProcessError(
                f"a worker ended before its time (its log: {job.paths.stderr}); the same command resumes from there"
            )


def _stop(jobs: Sequence[Any]) -> None:
    """Let every worker end its step and write its checkpoint; a second Ctrl-C leaves them to it."""
    for job in jobs:
        if not job.done():
            os.kill(int(job.job_id), signal.SIGTERM)  # the controller's process, which hands it on
    while any(not job.done() for job in jobs):
        time.sleep(0.1)


@contextmanager
def _environment(**variables: str) -> Generator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _handled(handlers: Mapping[int, Any]) -> Generator[None]:
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupts_ignored() -> AbstractContextManager[None]:
    """Processes started here see neither Ctrl-C nor the end of the terminal, which all are told of: we tell them."""
    return _handled(dict.fromkeys({signal.SIGINT, *ENDINGS} - {signal.SIGTERM}, signal.SIG_IGN))


def _endings_interrupt() -> AbstractContextManager[None]:
    """What asks for the end does as Ctrl-C does, unless it is to be ignored, as under nohup."""

    def interrupt(number: int, frame: object) -> None:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)  # it may come twice, and workers are still to be told
            leave_closed_terminal()
        raise KeyboardInterrupt

    heard = (number for number in ENDINGS if signal.getsignal(number) is not signal.SIG_IGN)
    return _handled(dict.fromkeys(heard, interrupt))
