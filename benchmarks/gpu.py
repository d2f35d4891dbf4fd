"""What training costs on a GPU: other ways to take a step, ours, epochs through the whole harness, several at once.

    python benchmarks/gpu.py                        # eight minutes at most on one H100; one table at the end
    python benchmarks/gpu.py --data-dir D           # CIFAR-10 itself, not noise of its shape: the times are the same
    python benchmarks/gpu.py --device cpu --tiny    # everything once, on a CPU, with next to nothing to compute

Each network is measured in a process of its own. torch.compile's "max-autotune", which may take minutes, comes last, in
another process; what does not fit in the time is missing from the table. Networks are pruned to 1% by FORCE in five
steps: how many weights are left does not matter here, but a ResNet-50 pruned at random keeps so few useful ones that
its first steps drown in rounding, and nothing compiled could be compared with them. Steps are timed over many, after
warming up, with the GPU waited for at both ends.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import skeletal
from skeletal.harness import data as data_sets
from skeletal.harness.config import Pruning, Setup, Training, resolve
from skeletal.harness.console.interrupt import Stop
from skeletal.harness.data import SPECS, Data
from skeletal.harness.data.memory import Arrays, Part, assemble
from skeletal.harness.devices import own_stream, pick_device, tuned
from skeletal.harness.runs.finding import create_model, find_mask
from skeletal.harness.store.folders import RunFolder
from skeletal.harness.training.several import train_many
from skeletal.harness.training.task import Task
from skeletal.harness.training.trainer import Trainer

DENSITY = 0.01
RATE = 0.01  # the labels of noise are noise, and nothing may diverge
ROWS = {
    "public": "step, as public codes take it: float32, eager",
    "eager": "step, best eager: bfloat16, channels last, fused SGD",
    "autotune": 'step, torch.compile "max-autotune" alone: bfloat16, channels last, fused SGD',
    "today": "step, ours, --graph no: data and augmentation included",
    "graph": "step, ours, one graph",
    "compiled": "step, ours, one graph, compiled",
    "epoch": "epoch through the harness, one graph",
    "epoch compiled": "the same, compiled",
    "whole 1": "epoch with validation and checkpoints",
    "whole 2": "the same of one of two together",
    "whole 4": "the same of one of four together",
    "compiled 1": "epoch with validation and checkpoints, compiled",
    "compiled 4": "the same of one of four together, compiled",
    "force": "FORCE, 300 steps, bfloat16",
}
EPOCHS = 8
ENDS: dict[Path, list[float]] = {}
"""when the epochs of a run ended"""


def noise(examples: int) -> Data:
    """A data set of CIFAR-10's shape, held in memory as bytes."""
    spec, draw = SPECS["cifar10"], torch.Generator().manual_seed(0)

    def part(count: int) -> Part:
        shape = (count, spec.channels, spec.image_size, spec.image_size)
        labels = torch.randint(spec.num_classes, (count,), generator=draw)
        return Part(torch.randint(256, shape, generator=draw, dtype=torch.uint8), labels)

    arrays = Arrays(part(examples), part(examples // 5), tuple(map(str, range(spec.num_classes))))
    return assemble(arrays, spec, validation=0.1, seed=0)


class Clocked(RunFolder):
    """A run folder that knows when its epochs ended."""

    def append(self, metrics: dict[str, Any]) -> None:
        """See `RunFolder`."""
        super().append(metrics)
        ENDS.setdefault(self.path, []).append(time.perf_counter())


class Measurement:
    """One network on one device."""

    def __init__(self, model: str, options: argparse.Namespace) -> None:
        self.device, self.tiny = pick_device(options.device), options.tiny
        self.setup = Setup(model=model, data="cifar10", device=str(self.device))
        loaded = data_sets.load("cifar10", options.data_dir) if options.data_dir else None
        self.data = loaded or noise(60 if self.tiny else 50_000)
        self.batch_size = 16 if self.tiny else 128
        self.settings: dict[str, Any] = dict(
            epochs=2 if self.tiny else 3, batch_size=self.batch_size, lr=RATE, bf16=True, channels_last=True,
            engine="dense", compile="no",
        )  # fmt: skip

    def network(self) -> tuple[nn.Module, skeletal.Mask]:
        """At its initialization, on the device, with its mask."""
        model = create_model(self.setup, self.data).to(self.device)
        batches = data_sets.Stream(data_sets.resident(self.data.train, self.device), self.batch_size, 0)
        return model, skeletal.prune(model, batches, density=DENSITY, method="force", steps=5)

    def wait(self) -> None:
        """For the GPU."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def milliseconds(self, step: Callable[[], object], warm_up: int = 10, steps: int = 100) -> float:
        """Of a step."""
        warm_up, steps = (1, 2) if self.tiny else (warm_up, steps)
        for _ in range(warm_up):
            step()
        self.wait()
        started = time.perf_counter()
        for _ in range(steps):
            step()
        self.wait()
        return 1000 * (time.perf_counter() - started) / steps

    def by_itself(self, *, fast: bool, compiled: bool = False) -> float:
        """Milliseconds of a step in a loop without data: the same batch, on the device, again and again."""
        model, mask = self.network()
        layout = torch.channels_last if fast else torch.contiguous_format
        model = model.to(memory_format=layout)
        split = data_sets.resident(self.data.train, self.device)
        images, labels = next(iter(split.batches(self.batch_size, train=True)))
        images = images.contiguous(memory_format=layout)
        fused = True if fast and self.device.type == "cuda" else None  # None: torch chooses, as for public codes
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9, weight_decay=5e-4, fused=fused)
        weights = [weight for name, weight in model.named_parameters() if name in mask]
        keep = [torch.empty_like(weight).copy_(mask[name]) for name, weight in model.named_parameters() if name in mask]
        network = self._autotuned(model) if compiled else model

        def step() -> None:
            optimizer.zero_grad()
            with torch.autocast(self.device.type, torch.bfloat16) if fast else nullcontext():
                loss = cross_entropy(network(images).float(), labels)
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                if fast:
                    torch._foreach_mul_(weights, keep)
                else:
                    for weight, kept in zip(weights, keep, strict=True):
                        weight.mul_(kept)

        if not fast:
            return self.milliseconds(step)
        with tuned(self.device):
            return self.milliseconds(step)

    def _autotuned(self, model: nn.Module) -> Any:
        return torch.compile(model, backend="eager") if self.tiny else torch.compile(model, mode="max-autotune")

    def task(self, folder: RunFolder | None = None, seed: int = 0, **changes: Any) -> Task:
        """A training as `skeletal run --bf16 --channels-last` does it."""
        model, mask = self.network()
        training = resolve(Training(**self.settings | changes), "cifar10")
        return Task(
            model=model, data=self.data, training=training, device=self.device, mask=mask, folder=folder, seed=seed
        )

    def ours(self, **changes: Any) -> float:
        """Milliseconds of a step in the harness: batches, augmentation, tally and all, without evaluation."""
        with self._trainer(**changes) as trainer:
            steps = trainer.steps()
            return self.milliseconds(lambda: next(steps), warm_up=20, steps=200)

    @contextmanager
    def _trainer(self, **changes: Any) -> Generator[Trainer]:
        with (
            tuned(self.device),
            own_stream(self.device),
            Stop() as stop,
            Trainer(self.task(**changes), stop, progress=False) as trainer,
        ):
            yield trainer

    def whole(self, root: Path, count: int, **changes: Any) -> tuple[float, float, str]:
        """Of one of several runs side by side: seconds from epoch to epoch; of its steps alone; how they were taken.

        Validation and checkpoints are included; what comes before the first epoch's end and after the last but one's is
        not: recording, compiling, the test.
        """
        asked = changes | {"epochs": 3 if self.tiny else EPOCHS}
        folders = [Clocked.open(root, f"{count}-{seed}", asked) for seed in range(count)]
        for _, outcome in train_many([self.task(folder, seed, **asked) for seed, folder in enumerate(folders)]):
            if isinstance(outcome, Exception):
                raise outcome
        ends, rows = ENDS[folders[0].path], folders[0].metrics()
        each = (ends[-2] - ends[0]) / ((len(ends) - 2) * count)
        return each, median(row["seconds"] for row in rows[1:-1]), rows[-1].get("step", "on a CPU")

    def force(self) -> float:
        """Seconds of finding a mask."""
        steps = 3 if self.tiny else 300
        asked = Pruning(method="force", density=DENSITY, steps=steps, precision="bfloat16", batches_per_step=1)
        asked = replace(asked, prune_batch_size=self.batch_size)
        model = create_model(self.setup, self.data)
        started = time.perf_counter()
        find_mask(model, self.data, self.setup, resolve(asked, "cifar10"), progress=False)
        return time.perf_counter() - started

    def all(self) -> Iterator[tuple[str, float, str]]:
        """Name, milliseconds or seconds, and a note, of everything but "max-autotune"."""
        yield "public", self.by_itself(fast=False), ""
        yield "eager", self.by_itself(fast=True), ""
        yield "today", self.ours(graph="no"), ""
        yield "graph", self.ours(), ""
        yield "force", self.force(), ""
        with TemporaryDirectory() as root:
            whole, seconds, how = self.whole(Path(root), 1)
            yield "epoch", seconds, how
            yield "whole 1", whole, how
            several = (2, 4) if seconds < 1.5 or self.tiny else ()  # a large network fills a GPU alone
            for count in several:
                yield f"whole {count}", self.whole(Path(root), count)[0], ""
            if self.device.type == "cuda":
                whole, seconds, how = self.whole(Path(root), 1, compile="yes")
                yield "epoch compiled", seconds, how
                yield "compiled 1", whole, how
                yield "compiled", self.ours(compile="yes"), ""
                if 4 in several:
                    yield "compiled 4", self.whole(Path(root), 4, compile="yes")[0], ""


def child(options: argparse.Namespace) -> None:
    """Measure one network, and print every figure at once as a line of JSON."""
    measurement = Measurement(options.child, options)
    figures = measurement.all()
    if options.autotune:
        figures = iter([("autotune", measurement.by_itself(fast=True, compiled=True), "")])
    while True:
        said: list[str] = []
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", UserWarning)
                name, value, note = next(figures)
            said = [str(warning.message) for warning in caught if "training step" in str(warning.message)]
        except StopIteration:
            return
        print(json.dumps({"name": name, "value": value, "note": "; ".join([note, *said]).strip("; ")}), flush=True)


def figures_of(model: str, options: argparse.Namespace, seconds: float, *extra: str) -> dict[str, tuple[float, str]]:
    """What a child process has measured before its time was over."""
    command = [sys.executable, __file__, "--child", model, "--device", options.device, *extra]
    command += ["--tiny"] if options.tiny else []
    command += ["--data-dir", str(options.data_dir)] if options.data_dir else []
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, timeout=max(seconds, 1))
        printed = done.stdout
    except subprocess.TimeoutExpired as late:
        printed = late.stdout or b""
        print(f"{model} {' '.join(extra)}: stopped after {seconds:.0f} s", file=sys.stderr)
    lines = [json.loads(line) for line in printed.decode().splitlines() if line.startswith("{")]
    for line in lines:
        print(f"{model}: {line['name']} {line['value']:.4g} {line['note']}", file=sys.stderr, flush=True)
    return {line["name"]: (line["value"], line["note"]) for line in lines}


def table(found: dict[str, dict[str, tuple[float, str]]]) -> str:
    """Every figure, a column a network; steps in milliseconds, the rest in seconds; ratios to ours below."""
    lines = [f"| | {' | '.join(found)} |", f"|---|{'---:|' * len(found)}"]
    for name, title in ROWS.items():
        unit = "ms" if title.startswith("step") else "s"
        cells = [f"{figures[name][0]:.2f} {unit}" if name in figures else "-" for figures in found.values()]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    for name in ("public", "eager", "autotune", "today"):
        cells = []
        for figures in found.values():
            best = min((figures[ours][0] for ours in ("graph", "compiled") if ours in figures), default=None)
            cells.append(f"{figures[name][0] / best:.2f}" if best and name in figures else "-")
        lines.append(f"| {ROWS[name].partition(':')[0]}, over our best | {' | '.join(cells)} |")
    notes = {
        f"{model}, {name}: {note}" for model, figures in found.items() for name, (_, note) in figures.items() if note
    }
    return "\n".join([*lines, "", *sorted(notes)])


def main() -> None:
    """Measure all networks, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--data-dir", type=Path, help="where CIFAR-10 lies; without it, noise of its shape")
    parser.add_argument("--models", nargs="+", default=["vgg19-cifar", "resnet50-cifar"])
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--tiny", action="store_true", help="a logic test: few small batches, few steps")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--autotune", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child(options)
    ends = time.monotonic() + 60 * options.minutes
    found: dict[str, dict[str, tuple[float, str]]] = {}
    for model in options.models:
        found[model] = figures_of(model, options, ends - time.monotonic())
    for model in options.models:
        found[model] |= figures_of(model, options, ends - time.monotonic(), "--autotune")
    card = torch.cuda.get_device_name() if options.device != "cpu" else platform.processor() or "CPU"
    data = "CIFAR-10" if options.data_dir else "noise of CIFAR-10's shape"
    print(f"{card}, torch {torch.__version__}, CUDA {torch.version.cuda}, Python {platform.python_version()}, {data}\n")
    print(table(found))


if __name__ == "__main__":
    main()
