"""The measuring: all contestants take turns in one process, and medians count."""

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from skeletal.core.choices import require
from skeletal.core.masks.mask import Mask
from skeletal.core.masks.match import matching_parameters
from skeletal.core.model.denormals import flush_denormals
from skeletal.harness.bench.contestants import (
    CONTESTANTS,
    LEARNING_RATE,
    MOMENTUM,
    OURS,
    WEIGHT_DECAY,
    Contestant,
    masked_copy,
    seconds,
)
from skeletal.harness.bench.memory import peak_memory
from skeletal.harness.bench.roofline import Machine, measure_machine, work
from skeletal.harness.bench.setting import Setting
from skeletal.harness.store.environment import environment

_WARM_UPS = 1


def bench(
    setting: Setting,
    masks: Mapping[str, Mask],
    *,
    baselines: tuple[str, ...] = ("a", "b"),
    repeat: int = 5,
    memory: bool = True,
    machine: Machine | None = None,
    note: Callable[[str], object] = lambda _: None,
) -> dict[str, Any]:
    """Time training steps and inference of one network under several masks, by ours and by others.

    Each repeat runs every contestant once, so any other load on the machine affects all alike; two warm-up rounds do
    not count. All flush denormals.

    Args:
        setting: the network and the batch.
        masks: by a name to show.
        baselines: keys of `CONTESTANTS`; a package that is not installed leaves a line that says how to install it.
        repeat: rounds of which the median is taken.
        memory: also measure peak memory, in a fresh process each.
        machine: rates for the roofline; measured if not given.
        note: told what is going on.

    Returns:
        Plain data: `where`, `setting`, `step`, `machine`, and under `masks` one record each, as `table` shows it.

    Raises:
        ValueError: an unknown baseline, no repeats, no masks.
        MaskError: a mask of another network.

    """
    for key in baselines:
        require("baseline", key, [key for key in CONTESTANTS if key not in OURS])
    if repeat < 1 or not masks:
        raise ValueError(f"a benchmark needs at least one repeat and one mask, not {repeat} and {len(masks)}")
    for mask in masks.values():
        # Refuse another network's mask before anything is measured.
        matching_parameters(dict(mask), setting.network(), called=setting.model)
    with flush_denormals():
        if machine is None:
            note("measuring what this machine can do at most")
            machine = measure_machine()
        keys = [*OURS, *dict.fromkeys(baselines)]
        records = []
        for name, mask in masks.items():
            note(f"{name}: building {', '.join(keys)}")
            records.append(_record(setting, name, mask, keys, repeat, memory, machine, note))
    return {
        "where": environment() | {"vector units": torch.backends.cpu.get_cpu_capability()},
        "setting": asdict(setting),
        "step": f"zero_grad, forward, cross-entropy, backward, SGD(lr={LEARNING_RATE}, momentum={MOMENTUM},"
        f" weight_decay={WEIGHT_DECAY}); denormals flushed; a batch of noise",
        "repeat": repeat,
        "machine": asdict(machine),
        "masks": records,
    }


def _record(
    setting: Setting,
    name: str,
    mask: Mask,
    keys: list[str],
    repeat: int,
    memory: bool,
    machine: Machine,
    note: Callable[[str], object],
) -> dict[str, Any]:
    model, (inputs, targets) = setting.network(), setting.batch()
    ways: dict[str, Contestant] = {}
    lines: dict[str, dict[str, Any]] = {}
    for key in keys:
        candidate = CONTESTANTS[key]
        lines[key] = {"title": candidate.title}
        if candidate.package is not None and find_spec(candidate.package) is None:
            lines[key]["missing"] = candidate.install
        else:
            ways[key] = candidate.build(model, mask, inputs, targets)
            lines[key] |= {"about": ways[key].about, "details": ways[key].details}
    with torch.no_grad():
        expected = masked_copy(model, mask).eval()(inputs)
    for key, way in ways.items():
        lines[key]["difference"] = _difference(way.infer(), expected)
    note(f"{name}: {repeat} rounds of {', '.join(ways)}")
    for what, pick in (("train_ms", lambda way: way.train), ("infer_ms", lambda way: way.infer)):
        times = interleaved({key: pick(way) for key, way in ways.items()}, repeat)
        for key, found in times.items():
            lines[key][what] = [1000 * t for t in found]
    for key, way in ways.items():
        lines[key]["state"] = way.state()
    del ways
    if memory:
        note(f"{name}: peak memory, a process each")
        with tempfile.TemporaryDirectory() as folder:
            mask.save(path := Path(folder) / "mask.safetensors")
            for key, line in lines.items():
                if "missing" not in line:
                    line["memory"] = peak_memory(setting, path, key, torch.get_num_threads())
    needs = {
        "kept": work(model, mask, inputs, dense=False),
        "kept16": work(model, mask, inputs, dense=False, size=2),
        "dense": work(model, mask, inputs, dense=True),
    }
    return {
        "name": name,
        "density": mask.density,
        "kept": mask.kept,
        "total": mask.total,
        "method": mask.metadata.get("method", "mask"),
        "found_on": mask.metadata.get("data"),
        "contestants": lines,
        "work": {what: asdict(w) | {"least_ms": 1000 * w.seconds(machine)} for what, w in needs.items()},
    }


def interleaved(
    calls: Mapping[str, Callable[[], object]], repeat: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of `repeat` calls of each, all taking turns, after a round that does not count.

    A turn is two calls, of which the second counts: in a training a step follows one of its own kind, and finds the
    caches, memory and threads as that step left them, not as another contestant did.
    """
    times: dict[str, list[float]] = {key: [] for key in calls}
    for turn in range(_WARM_UPS + repeat):
        for key, call in calls.items():
            call()
            if turn >= _WARM_UPS:
                times[key].append(seconds(call, clock))
    return times


def _difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference of two outputs, over the largest of the expected ones."""
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30))
