"""CUDA graphs of a run's step: recorded, compared with eager steps, and only then trusted."""

import gc
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from skeletal.core.model.state.processor_draws import ProcessorDraws
from skeletal.harness.training.checkpoint import RunState
from skeletal.harness.training.evaluate import Tally
from skeletal.harness.training.processes import Team
from skeletal.harness.training.static_step import Snapshot, StaticStep
from skeletal.harness.training.step import Batching, EagerSteps

WARM_UPS = 3  # steps before recording, in which cuDNN chooses its algorithms and libraries allocate what they keep
COMPARED = 2  # recorded steps: the second shows that the counter moves on and that weights have moved
FLOAT32_ROUNDING = 0.02  # of an update, relative; TF32 keeps 10 bits, and sums have another order each time
MOST = 0.5  # an update that differs by more than this is another one, whatever the precision


_failed: list[torch.cuda.CUDAGraph] = []
"""recordings that came to nothing"""


class MismatchError(RuntimeError):
    """Recorded steps differ from the steps they record."""


class Recorder(Protocol):
    """What makes recordings."""

    def record(self, step: Callable[[], None]) -> Callable[[], object]:
        """A function that repeats what `step` does; `step` has been called before, and may be called again."""
        ...

    def synchronize(self) -> None:
        """Wait for the device."""
        ...


class GraphRecorder:
    """Records into CUDA graphs, which share their memory; the current stream must not be the default one."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._pool = device, torch.cuda.graph_pool_handle()

    def record(self, step: Callable[[], None]) -> Callable[[], object]:
        """See `Recorder`."""
        gc.collect()  # nothing is to be freed while recording
        graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.current_stream(self._device)
        # A state of its own: a recording that fails leaves its state half-made, and others write to theirs.
        generator: Any = torch.cuda.default_generators[self._device.index or 0]
        drawn = generator.graphsafe_get_state().clone_state()
        try:
            with (
                _drawing_from(drawn, generator),
                torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"),
            ):
                step()
        except BaseException:
            self._leave_capture(graph)
            raise

        def replay() -> None:
            """Draw what comes next, as the step itself would, and leave the generator as the step would."""
            drawn.set_state(generator.get_state())
            graph.replay()
            generator.set_state(drawn.get_state())

        return replay

    def _leave_capture(self, graph: torch.cuda.CUDAGraph) -> None:
        # When a capture fails, torch leaves its allocator in capture mode, and later asks the dead graph.
        _failed.append(graph)
        leave: Any = getattr(torch._C, "_cuda_endAllocateToPool", lambda *_: None)
        with suppress(RuntimeError):  # it has left by itself
            leave(torch.cuda.current_device(), self._pool)

    def synchronize(self) -> None:
        """See `Recorder`."""
        torch.cuda.synchronize(self._device)


@contextmanager
def _drawing_from(state: Any, generator: Any) -> Generator[None]:
    """Let the device's random layers draw from another state of its generator."""
    before = generator.graphsafe_get_state()
    generator.graphsafe_set_state(state)
    try:
        yield
    finally:
        generator.graphsafe_set_state(before)


@dataclass(frozen=True)
class Recording:
    """A run's step, recorded for each size of its batches."""

    step: StaticStep
    replays: dict[int, Callable[[], object]]
    recorder: Recorder

    def of(self, size: int) -> Callable[[], object]:
        """What takes a step on `size` examples."""
        return self.replays[size]

    def seconds(self, run: RunState, steps: int = 10) -> float:
        """Of a step on a full batch, measured; the run is left as it was."""
        before = _state(run)
        try:
            self.step.turn_to(run.epoch, 0)
            self.recorder.synchronize()
            started = time.perf_counter()
            for _ in range(steps):
                self.step.seek(0)
                self.replays[self.step.size(0)]()
            self.recorder.synchronize()
            return (time.perf_counter() - started) / steps
        finally:
            before.restore()


def record(run: RunState, step: StaticStep, recorder: Recorder) -> Recording:
    """Record a run's step; the run is left as it was.

    Raises:
        RuntimeError: the step cannot be recorded, for instance because the network asks for values on its way.

    """
    before = _state(run)
    draws = ProcessorDraws(run.engine.network, run.device)
    replays = {}
    try:
        for size, batch in {step.size(batch): batch for batch in (step.steps - 1, 0)}.items():
            step.turn_to(run.epoch, batch)
            for _ in range(WARM_UPS):
                step.seek(batch)
                step(size)
            if (name := before.replaced()) is not None:
                raise RuntimeError(f"{name} becomes another tensor in each step, and a recording knows only the first")
            if (name := before.counted()) is not None:
                raise RuntimeError(f"the network changes {name} in its first steps, and a recording has no such change")
            draws.refuse()
            before.restore()
            step.seek(batch)
            replays[size] = recorder.record(lambda size=size: step(size))
    finally:
        before.restore()
        gc.collect()
    return Recording(step, replays, recorder)


@dataclass(frozen=True)
class Comparison:
    """Recorded steps beside eager ones; both numbers are relative to an eager step's change of the weights."""

    difference: float
    """the greatest between a recorded and an eager step"""
    rounding: float
    """the greatest between an eager step and the same without autocast"""

    def and_(self, other: "Comparison") -> "Comparison":
        """The greatest of both."""
        return Comparison(max(self.difference, other.difference), max(self.rounding, other.rounding))


def compare(run: RunState, batching: Batching, recording: Recording) -> Comparison:
    """Compare the first recorded steps of a full batch, and one of a short last batch, with eager ones.

    The measure is the change of all weights together: the distance of the two changes over the length of the eager one.
    Every recorded step starts where the eager one starts, as rounding grows from step to step at a large learning rate.
    Under bf16 autocast a change may differ by twice its rounding error, its distance from the change in float32.

    Returns:
        How close they are; the run is left as it was.

    Raises:
        MismatchError: a difference beyond rounding, in the weights or in what a batch has scored.

    """
    step, before = recording.step, _state(run)
    passes = {0: min(COMPARED, step.steps if step.size(0) == step.last_size else step.steps - 1)}
    if step.last_size != step.size(0):
        passes[step.steps - 1] = 1
    worst = Comparison(0.0, 0.0)
    try:
        for first, count in passes.items():
            starts, expected = [before], []
            for batch in range(first, first + count):
                expected.append(_eager(run, batching, starts[-1], batch))
                starts.append(_state(run))
            exact = [
                _eager(run, replace(batching, autocast=nullcontext), start, first + number)
                for number, start in enumerate(starts[:-1])
            ]
            found = _recorded(run, recording, starts[:-1], first)
            for number, (start, theirs, truth, mine) in enumerate(zip(starts, expected, exact, found, strict=False)):
                worst = worst.and_(_checked(f"step {number + 1} from batch {first}", start, theirs, truth, mine))
    finally:
        before.restore()
    return worst


@dataclass(frozen=True)
class _After:
    """What a step has left."""

    weights: Tensor
    scores: Tensor  # float32 (3,)


def _state(run: RunState) -> Snapshot:
    return Snapshot(run.engine.network, run.optimizer, run.device)


def _checked(which: str, start: Snapshot, theirs: _After, truth: _After, mine: _After) -> Comparison:
    """A recorded step beside an eager one; `truth` is the eager one without autocast."""
    if not (theirs.scores[0].isfinite() or mine.scores[0].isfinite()):
        return Comparison(0.0, 0.0)  # both diverge, which the run itself has to say
    where = start.weights_kept()
    rounding = _difference(where, theirs.weights, truth.weights)
    limit = min(MOST, max(FLOAT32_ROUNDING, 2 * rounding))
    difference = _difference(where, theirs.weights, mine.weights)
    apart = (mine.scores - theirs.scores).abs()
    if not (difference <= limit and apart[0] <= limit * max(1.0, abs(float(theirs.scores[0])))):
        raise MismatchError(
            f"{which} is off by {difference:.2g} of an eager step's change of the weights, where rounding explains"
            f" {limit:.2g}, and its loss is {float(mine.scores[0]):g}, not {float(theirs.scores[0]):g}"
        )
    return Comparison(difference, rounding)


def _eager(run: RunState, batching: Batching, start: Snapshot, batch: int) -> _After:
    start.restore()
    before = run.batch, run.tally
    run.batch, run.tally = batch, Tally()
    try:
        next(EagerSteps(run, batching, Team(run.engine.network, run.device)).take(lambda: False))
        return _After(start.weights(), run.tally.newest())
    finally:
        run.batch, run.tally = before


def _recorded(run: RunState, recording: Recording, starts: list[Snapshot], first: int) -> list[_After]:
    """What recorded steps leave; the counter and random draws advance by themselves from the first one."""
    step, seen = recording.step, []
    starts[0].restore()
    step.turn_to(run.epoch, first)
    for batch, start in enumerate(starts, first):
        start.put_back()
        recording.of(step.size(batch))()
        seen.append(_After(start.weights(), step.table[batch].cpu()))
    return seen


def _difference(start: Tensor, expected: Tensor, found: Tensor) -> float:
    """The distance of two changes from `start`, over the length of the expected one."""
    length = torch.linalg.vector_norm(expected - start).item()
    return torch.linalg.vector_norm(found - expected).item() / length if length else float(not found.equal(expected))
