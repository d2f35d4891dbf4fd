"""Several trainings in one process, which take turns at every step.

A small network leaves most of a GPU idle, and a step that is one graph takes the host no time: so while one run's graph
is computed on its stream, the next run's is launched on another. Each run has its own folder, seed, mask, random state
and stream, and is what it would be alone. On a CPU they only take turns.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from skeletal.core.model.denormals import flush_denormals
from skeletal.core.model.distributed import ranks
from skeletal.core.model.state.random_state import RandomState
from skeletal.core.model.state.reach import has_own_code
from skeletal.harness.console.interrupt import Interrupted, Stop
from skeletal.harness.devices import tuned
from skeletal.harness.training.task import Task, TrainResult
from skeletal.harness.training.trainer import Trainer, turns

Outcome = TrainResult | Exception


def train_many(tasks: Sequence[Task]) -> Iterator[tuple[int, Outcome]]:
    """Train several networks side by side on one device; see `train`, which each of them equals.

    Args:
        tasks: for one device. Runs of the same network fill it best: all take as many steps, one at a time.

    Yields:
        For each task as it ends, its number and its result, or the exception that ended it; the others continue.

    Raises:
        ValueError: there are several devices, or several processes.
        Interrupted: a signal came; every run under way has written its checkpoint.

    """
    devices = {task.device for task in tasks}
    if len(devices) > 1:
        raise ValueError(f"runs that take turns share a device, these have {', '.join(map(str, devices))}")
    if ranks() > 1:
        raise ValueError(f"runs take turns in one process, here are {ranks()}: run them one after the other")
    interrupted: Interrupted | None = None
    with ExitStack() as open_, Stop() as stop:
        open_.enter_context(flush_denormals())
        for device in devices:
            open_.enter_context(tuned(device))
        waiting = {number: _Turns(task, stop, len(tasks)) for number, task in enumerate(tasks)}
        while waiting:
            for number, run in list(waiting.items()):
                try:
                    outcome: Outcome | None = run.take_one()
                except Interrupted as stopped:
                    interrupted, outcome = stopped, None
                    del waiting[number]
                except Exception as error:
                    outcome = error
                if outcome is not None:
                    del waiting[number]
                    yield number, outcome
    if interrupted is not None:
        raise interrupted


class _Turns:
    """A run that takes a step whenever it is its turn, and leaves the process's random state as it was."""

    def __init__(self, task: Task, stop: Stop, runs: int) -> None:
        self._stream = torch.cuda.Stream(task.device) if task.device.type == "cuda" else None
        self._device = task.device
        self._drawn: RandomState | None = None
        self._only_torch = not has_own_code(task.model)
        self._cuda_state: Any = None
        self._steps = self._run(task, stop, runs)

    @staticmethod
    def _run(task: Task, stop: Stop, runs: int) -> Iterator[TrainResult | None]:
        result = None
        with Trainer(task, stop, progress=False, runs=runs) as trainer:
            for result in turns(trainer):
                if result is None:
                    yield None
        yield result

    def take_one(self) -> TrainResult | None:
        """Take a step; return the result after the last one."""
        with self._place():
            return next(self._steps)

    @contextmanager
    def _place(self) -> Generator[None]:
        first = self._drawn is None  # in which all generators are seeded
        outside = RandomState(only_torch=self._only_torch and not first)
        if self._drawn is not None:
            self._drawn.restore()
        try:
            with self._on_gpu():
                yield
        finally:
            self._drawn = RandomState(only_torch=self._only_torch)
            outside.restore()

    @contextmanager
    def _on_gpu(self) -> Generator[None]:
        if self._stream is None:
            yield
            return
        # What the run has drawn so far goes on in a state of its own.
        generator: Any = torch.cuda.default_generators[self._device.index or 0]
        outside = generator.graphsafe_get_state()
        generator.graphsafe_set_state(self._cuda_state or outside.clone_state())
        try:
            with torch.cuda.stream(self._stream):
                if self._cuda_state is None:  # what others have moved to the device is there
                    torch.cuda.synchronize(self._device)
                yield
        finally:
            self._cuda_state = generator.graphsafe_get_state()
            generator.graphsafe_set_state(outside)
