"""Several runs in one process: their masks are found one after the other, their networks trained side by side."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from skeletal.harness.config import Pruning, Setup, Training
from skeletal.harness.devices import pick_device
from skeletal.harness.runs.experiment import begin, result_of, run_folder
from skeletal.harness.runs.finding import refuse_unlike
from skeletal.harness.training.several import train_many
from skeletal.harness.training.task import Task, TrainResult


@dataclass(frozen=True)
class Settings:
    """The settings of a run, resolved, as `experiment.run` takes them."""

    setup: Setup
    pruning: Pruning
    training: Training
    name: str | None = None


def run_many(
    runs: Sequence[Settings], *, root: Path, started: Callable[[int], None] = lambda number: None
) -> Iterator[tuple[int, dict[str, Any] | Exception]]:
    """Prune one after the other, and train together; each run is what `experiment.run` makes of it, in its own folder.

    A run that fails does not stop the others. Finished runs are read, interrupted ones resume.

    Args:
        runs: for one device. Those of the same network on the same data set share a GPU best.
        root: the folder of run folders.
        started: told the number of each run that is taken.

    Yields:
        For each run as it ends, its number and what is in its `result.json`, or the exception that ended it: a
        `BusyError` where another process is at work on it, a `ValueError` where an earlier one of `runs` is the same.

    Raises:
        Interrupted: a signal came; every run under way has written its checkpoint.

    """
    with ExitStack() as claims:
        claimed = {number: claims.enter_context(ExitStack()) for number in range(len(runs))}
        tasks: dict[int, Task] = {}
        taken: dict[Path, int] = {}
        for number, settings in enumerate(runs):
            try:
                found = _claim(settings, root, claimed[number])
                if not isinstance(found, _Claimed):
                    yield number, found
                    continue
                if (first := taken.setdefault(found.folder, number)) != number:
                    raise ValueError(f"runs {first} and {number} are the same, in {found.folder}: leave one out")
                started(number)
                tasks[number] = found.begin()
            except Exception as error:
                claimed[number].close()
                yield number, error
        numbers = list(tasks)
        beside = {"seconds_shared_by": len(tasks)} if len(tasks) > 1 else {}  # they contain the turns of all
        for position, outcome in train_many(list(tasks.values())):
            number = numbers[position]
            task = tasks.pop(number)
            if isinstance(outcome, TrainResult):
                assert task.folder is not None, "every run has a folder"
                result = result_of(runs[number].setup, task, outcome) | beside
                task.folder.finish(result)
                outcome = result
            claimed[number].close()
            yield number, outcome


class _Claimed(NamedTuple):
    """A run that is to be done, and what begins it."""

    folder: Path
    begin: Callable[[], Task]


def _claim(settings: Settings, root: Path, held: ExitStack) -> dict[str, Any] | _Claimed:
    """The result of a finished run, or that it is to be done, after claiming it."""
    # The same GPU for all, whatever it is called.
    setup = replace(settings.setup, device=str(pick_device(settings.setup.device)))
    parts = setup, settings.pruning, settings.training
    folder = run_folder(*parts, root=root, name=settings.name)
    if not folder.finished:
        held.enter_context(folder.claim())
    if folder.finished:  # perhaps by the process that had it until just now
        refuse_unlike(setup, folder)
        return folder.result()
    return _Claimed(folder.path, lambda: begin(*parts, root=root, name=settings.name, progress=False))
