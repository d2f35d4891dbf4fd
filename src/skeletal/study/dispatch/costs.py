"""What a run will cost: from finished runs of the same network, else from multiply-adds and a measured rate.

The overhead around the arithmetic (reading data, compiling kernels, launching every step) is only known from runs made
here. Where there is so little arithmetic that overhead is most of a run, and there are no such runs, nothing is known.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from skeletal.harness.config import HELD_OUT
from skeletal.harness.store.environment import environment
from skeletal.harness.store.folders import read_json
from skeletal.study.paper.jobs import Job

# Training images, of which a part may be held out, and images to test on.
_IMAGES = {
    "digits": (1_437, 360),
    "fashion-mnist": (60_000, 10_000),
    "cifar10": (50_000, 10_000),
    "cifar100": (50_000, 10_000),
    "tiny-imagenet": (100_000, 10_000),
    "imagenet": (1_281_167, 50_000),
}
_MEASURING_IMAGES = 1_280  # see `harness.measure`
# Passes through the network for one example, in forward passes: forward and backward, and GRASP's second backward.
_TRAINING, _HESSIAN = 3, 9
_TOLD = 60
"""seconds of counted arithmetic in a run, below which the overhead may be more"""
_WITHOUT_DATA = ("random", "random-uniform", "random-erk", "magnitude", "synflow", "dense")


@dataclass(frozen=True)
class Cost:
    """Seconds of one process, and where they come from."""

    seconds: float
    source: Literal["measured", "counted", "unknown"]
    """"measured": finished runs of the same network and data set; "counted": multiply-adds at this machine's rate;
    "unknown": these are so few that the time goes elsewhere, and the seconds are a lower bound"""


def clock(seconds: float) -> str:
    """Return seconds for a reader: "40 s", "12 min", "3.5 h", "9 days"."""
    for limit, unit, name in ((100, 1, "s"), (6000, 60, "min"), (360_000, 3600, "h"), (math.inf, 86_400, "days")):
        if seconds < limit:
            value = seconds / unit
            return f"{value:.0f} {name}" if value >= 10 or unit == 1 else f"{value:.1f} {name}"
    raise ValueError(f"no duration: {seconds}")


class Costs:
    """Estimates from the runs below `root` that were made on a machine like this; they are read once, here."""

    def __init__(self, root: Path, device: str = "auto") -> None:
        self._device = device
        self._per_epoch: dict[tuple[Any, ...], list[float]] = {}
        self._per_example: dict[tuple[Any, ...], list[float]] = {}
        self._around: dict[tuple[Any, ...], list[float]] = {}
        here = _machine(environment())
        for file in sorted(root.glob("*/result.json")):
            if not (file.parent / "environment.json").is_file():
                continue  # another program's
            config, ran, result = (
                read_json(file.parent / name) for name in ("config.json", "environment.json", "result.json")
            )
            if _machine(ran) == here:
                self._learn(config, result)

    def _learn(self, config: dict[str, Any], result: dict[str, Any]) -> None:
        where, method = (config.get("model"), config.get("data")), config.get("method")
        if "seconds_per_epoch" in result and "seconds_shared_by" not in result:  # with runs trained beside it
            for key in ((*where, method, config.get("density")), where):
                self._per_epoch.setdefault(key, []).append(result["seconds"] / result["epochs"])
        if "wall_seconds" in result:
            inside = result.get("seconds", 0.0) + (result.get("prune_seconds") or 0.0)
            self._around.setdefault(where, []).append(max(result["wall_seconds"] - inside, 0.0))
        images = _pruning_images(config)
        if images and result.get("prune_seconds") is not None:
            self._per_example.setdefault((*where, method), []).append(result["prune_seconds"] / images)

    def of(self, job: Job) -> Cost:
        """Return what the job costs from its beginning to its end; of a masked network on a CPU an upper bound."""
        setup, pruning, training = job.setup, job.pruning, job.training
        where = (setup.model, setup.data)
        parts = [self._pruning(job)]
        if training is not None:
            exact, similar = (self._per_epoch.get(key) for key in ((*where, pruning.method, pruning.density), where))
            known = exact or similar
            train, test = _IMAGES.get(setup.data, (math.nan, math.nan))
            held_out = train * (HELD_OUT if setup.validation is None else setup.validation)
            passes = _TRAINING * (train - held_out) + test / (training.epochs or 1)
            per_epoch = fmean(known) if known else passes * self._forward_seconds(*where)
            parts.append(Cost((training.epochs or 0) * per_epoch, "measured" if known else "counted"))
        else:
            seconds = _MEASURING_IMAGES * _TRAINING * self._forward_seconds(*where)
            parts.append(Cost(seconds, parts[0].source))
        if around := self._around.get(where):
            parts.append(Cost(fmean(around), "measured"))
        found = total(parts)
        seen = where in self._per_epoch or where in self._around
        return found if seen or found.source == "measured" or found.seconds >= _TOLD else Cost(found.seconds, "unknown")

    def _pruning(self, job: Job) -> Cost:
        setup, method = job.setup, job.pruning.method
        images = _pruning_images(vars(job.pruning))
        if known := self._per_example.get((setup.model, setup.data, method)):
            return Cost(images * fmean(known), "measured")
        passes = _HESSIAN if method in ("grasp", "grasp-iterative") else _TRAINING
        if not images:
            return Cost(0.0, "measured")  # seconds at most
        return Cost(images * passes * self._forward_seconds(setup.model, setup.data), "counted")

    def _forward_seconds(self, model: str, data: str) -> float:
        """Of one example."""
        return _forward_flops(model, data) / _rate(self._device)


def total(costs: Iterable[Cost]) -> Cost:
    """Return the sum; it is only as reliable as its least reliable part."""
    costs = list(costs)
    sources = {cost.source for cost in costs}
    source: Any = next((worst for worst in ("unknown", "counted") if worst in sources), "measured")
    return Cost(sum(cost.seconds for cost in costs), source)


def said(costs: Sequence[Cost]) -> str:
    """For people: a time, "about" one where it is counted, "unknown", or more than what is known of it."""
    whole, known = total(costs), total(cost for cost in costs if cost.source != "unknown")
    if whole.source == "unknown":
        return f"more than {clock(known.seconds)}" if known.seconds >= _TOLD else "unknown"
    return f"{'about ' if whole.source == 'counted' else ''}{clock(whole.seconds)}" if costs else ""


def _machine(described: dict[str, Any]) -> tuple[Any, ...]:
    return described.get("cpu"), {gpu["name"] for gpu in described.get("gpus") or ()}


def _pruning_images(settings: dict[str, Any]) -> int:
    """How many images a mask is found on."""
    if settings.get("method") in _WITHOUT_DATA:
        return 0
    counts = (settings.get(name) or 0 for name in ("steps", "batches_per_step", "prune_batch_size"))
    return math.prod(counts)


@cache
def _forward_flops(model: str, data: str) -> int:
    """Operations of a forward pass of one example; counted on the meta device, where nothing is computed."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from skeletal.harness import models
    from skeletal.harness.data import SPECS

    spec = SPECS[data]
    with torch.device("meta"):
        network = models.create(
            model, num_classes=spec.num_classes, in_channels=spec.channels, image_size=spec.image_size
        ).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(torch.empty(1, spec.channels, spec.image_size, spec.image_size))
    return counter.get_total_flops()


@cache
def _rate(device: str) -> float:
    """Operations per second of a middling 3x3 convolution, forward and backward; takes a fraction of a second."""
    import torch
    from torch.utils.benchmark import Timer

    from skeletal.harness.devices import pick_device

    place = pick_device(device)
    batch = 32 if place.type == "cpu" else 256
    layer = torch.nn.Conv2d(128, 128, 3, padding=1, device=place)
    inputs = torch.randn(batch, 128, 16, 16, device=place, requires_grad=True)
    operations = 3 * 2 * batch * 128 * 128 * 9 * 16 * 16
    step = {"step": lambda: layer(inputs).sum().backward()}
    timer = Timer("step()", globals=step, num_threads=torch.get_num_threads())  # warms up, and waits for a GPU
    return operations / timer.blocked_autorange(min_run_time=0.1).median
