"""How a run's steps are taken on a GPU: as one CUDA graph where that can be, else eagerly, and the record says why."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from skeletal.core.model.batches import cross_entropy
from skeletal.core.model.distributed import ranks
from skeletal.core.model.weights import prunable_weights
from skeletal.harness.config import Training
from skeletal.harness.data.memory import MemorySplit
from skeletal.harness.store.statefile import in_short
from skeletal.harness.training.checkpoint import RunState
from skeletal.harness.training.evaluate import to_device
from skeletal.harness.training.graph import (
    MOST,
    Comparison,
    GraphRecorder,
    MismatchError,
    Recorder,
    Recording,
    compare,
    record,
)
from skeletal.harness.training.processes import Team
from skeletal.harness.training.static_step import Snapshot, StaticStep, StaticSteps
from skeletal.harness.training.step import Batching, EagerSteps, Steps

# Measured on H100 and H200 with VGG-19 and ResNet-50: see docs/gpu.md.
COMPILE_SECONDS = 1.0  # that torch.compile takes, roughly, for each convolution or linear layer
COMPILE_GAIN = 0.2  # of a captured step
WORTH = 2.0  # compiling must be expected to save this many times its cost


@dataclass(frozen=True)
class Way:
    """A way to take steps."""

    steps: Steps
    about: str | None
    """for an epoch's record: "graph" or "eager", what was compiled, and why; None on a CPU, where there is no choice"""


def choose(run: RunState, batching: Batching, team: Team, training: Training, steps_left: int) -> Way:
    """Record the run's step and compare it with eager ones, or find out why that cannot be; the run is left as it was.

    Args:
        run: at the step it resumes from, its network in training mode.
        batching: its batches.
        team: its processes.
        training: whose `graph` and `compile` are followed.
        steps_left: of the whole run, over which compiling has to pay.

    Warns:
        UserWarning: the step cannot be recorded, or not be compiled, though nothing speaks against it beforehand.

    """
    recorder = recorder_for(run.device)
    reason = why_eager(training, batching, recorder)
    if recorder is None or reason is not None:
        return _eager(run, batching, team, training, reason)
    network = run.engine.network
    try:
        recording, close = _checked(run, batching, network, recorder)
    except Exception as error:  # nobody knows in advance what a stranger's network does
        _warn("taken kernel by kernel", error)
        return _eager(run, batching, team, training, f"not captured ({in_short(error)})")
    compiled, about = _compiled(run, batching, training, recorder, recording, close.rounding, steps_left)
    recording = compiled or recording
    return Way(StaticSteps(run, recording.step, recording.of), f"graph{about}")


def recorder_for(device: torch.device) -> Recorder | None:
    """What records steps on a device; None where nothing does."""
    return GraphRecorder(device) if device.type == "cuda" else None


def why_eager(training: Training, batching: Batching, recorder: Recorder | None) -> str | None:
    """What speaks against recording, before it is tried; None if nothing does."""
    if recorder is None:
        return "no CUDA device"
    if training.graph == "no":
        return "--graph no"
    if training.update != "none":
        return f"--update {training.update}, a mask that moves"
    if ranks() > 1:
        return f"{ranks()} processes"
    if not isinstance(batching.split, MemorySplit):
        return "images are not in memory"
    return None


def pays(training: Training, network: nn.Module, step_seconds: float, steps_left: int) -> bool:
    """Whether to try torch.compile: asked for, or expected to save twice the time that it takes.

    It takes about a second for each convolution and linear layer, and makes a captured step about a fifth shorter.
    """
    if training.compile != "auto":
        return training.compile == "yes"
    return COMPILE_GAIN * step_seconds * steps_left > WORTH * COMPILE_SECONDS * len(prunable_weights(network))


def _eager(run: RunState, batching: Batching, team: Team, training: Training, reason: str | None) -> Way:
    on_gpu = run.device.type == "cuda"
    if training.compile != "yes" or run.engine.compiled:  # by us, into kernels that torch.compile does not know
        return Way(EagerSteps(run, batching, team), f"eager: {reason}" if on_gpu else None)
    network = compiled_by_torch(run.engine.network)
    try:
        _try(run, batching, network)
    except Exception as error:  # of the compiler, or the C++ compiler it needs
        warnings.warn(f"the network is trained without torch.compile ({in_short(error)})", stacklevel=5)
        return Way(EagerSteps(run, batching, team), f"eager: {reason} (not compiled: {in_short(error)})")
    return Way(EagerSteps(run, batching, team, network), f"eager, compiled: {reason}")


def _try(run: RunState, batching: Batching, network: Callable[[Tensor], Tensor]) -> None:
    """Compile a network by passing a batch through it, forward and backward; the run is left as it was."""
    before = Snapshot(run.engine.network, run.optimizer, run.device)
    batches = batching.split.batches(
        batching.batch_size, train=True, seed=batching.seed, epoch=run.epoch, start=run.batch
    )
    try:
        for inputs, targets in islice(batches, 1):
            with batching.autocast():
                outputs = network(to_device(inputs, run.device, batching.channels_last))
            cross_entropy(outputs.float(), targets.to(run.device)).backward()
    finally:
        before.restore()


def _checked(
    run: RunState, batching: Batching, network: Callable[[Tensor], Tensor], recorder: Recorder
) -> tuple[Recording, Comparison]:
    recording = record(run, StaticStep(run, batching, network), recorder)
    return recording, compare(run, batching, recording)


def _compiled(
    run: RunState,
    batching: Batching,
    training: Training,
    recorder: Recorder,
    plain: Recording,
    rounding: float,
    steps_left: int,
) -> tuple[Recording | None, str]:
    """The step with the network compiled by torch, if it pays, and is right, and faster; words for the record."""
    automatic = training.compile == "auto"
    seconds = plain.seconds(run) if automatic else math.inf
    if not pays(training, run.engine.network, seconds, steps_left):
        return None, ""
    if rounding > MOST:  # other kernels round otherwise, and no comparison could tell theirs from a wrong step
        return None, f" (not compiled: rounding to bfloat16 alone moves a step by {rounding:.1f} of its length)"
    try:
        recording, _ = _checked(run, batching, compiled_by_torch(run.engine.network), recorder)
    except Exception as error:  # of the compiler, the C compiler it needs, or what they have made
        _warn("captured without torch.compile", error)
        return None, f" (not compiled: {in_short(error)})"
    if automatic and (faster := recording.seconds(run)) >= seconds:
        return None, f" (not compiled: {1000 * faster:.2f} ms a step, {1000 * seconds:.2f} without)"
    return recording, ", compiled"


def compiled_by_torch(network: nn.Module) -> Any:
    """The network as torch.compile makes it, with its parameters; random layers draw the same numbers as without it."""
    return torch.compile(network, dynamic=False, options={"fallback_random": True})


def _warn(instead: str, error: Exception) -> None:
    what = "differs from eager ones" if isinstance(error, MismatchError) else "cannot be captured"
    warnings.warn(f"the training step {what} ({in_short(error)}): it is {instead}", stacklevel=6)
