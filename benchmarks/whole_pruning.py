"""A whole pruning by FORCE on real images: seconds per step, for each of our ways and the straightforward reference.

    python benchmarks/whole_pruning.py --model vgg19-cifar --data-dir D [--steps 20] [--density 0.01]
    python benchmarks/whole_pruning.py --model resnet50-cifar --data-dir D --steps 300 --density 0.001 --of-reference 9

Each step takes one batch of 128 training images, the same for all. The reference is that of `pruning_cost.py`: it does
what public implementations do, and flushes no denormals, of which later steps of a real pruning have many. "engine"
takes steps on a compiled skeleton once few weights are left, or from the start (see
`skeletal.engine.scoring.break_even`). For the reference, fewer steps may do, spread over the same densities
(`--of-reference`). All ways take turns, `--repeats` times; the table has medians of a step's mean. The last rows are
the network's forward and backward pass alone, as torch runs it in the faster of two memory orders: what would be left
of a dense step if masks, scores and selection cost nothing, and so the most that torch's dense kernels can gain.
"""

import argparse
import platform
import statistics
import time
import warnings
from datetime import date
from itertools import islice
from pathlib import Path

import torch
from pruning_cost import ours, reference
from torch import nn

import skeletal
from skeletal.core.model.denormals import flush_denormals
from skeletal.core.pruning.schedules import exponential
from skeletal.core.table import markdown_head, markdown_row
from skeletal.harness.config import Pruning, Setup, resolve
from skeletal.harness.runs.finding import create_model, load_data, pruning_batches
from skeletal.harness.store.environment import cpu_model

PATHS = {
    "reference": None,
    "float32": {},
    "float32, engine": {"engine": "sparse"},
    "bfloat16": {"precision": "bfloat16"},
    "bfloat16, engine": {"precision": "bfloat16", "engine": "sparse"},
}


class OneAStep:
    """Batches of which each pass over it takes the next one."""

    def __init__(self, batches):
        self.batches = iter(batches)

    def __len__(self):
        return 1

    def __iter__(self):
        return islice(self.batches, 1)


def whole(path, model, batches, counts):
    """Seconds of a step, the mean over all, planning included."""
    start = time.perf_counter()
    if path == "reference":
        for _ in reference(model, OneAStep(batches), counts):
            pass
    else:
        ours(model, batches, counts, **PATHS[path])
    return (time.perf_counter() - start) / len(counts)


def alone(model, batch, bf16):
    """Seconds of a forward and backward pass."""
    x, y = batch
    times = []
    for order in (torch.contiguous_format, torch.channels_last):
        images = x.contiguous(memory_format=order)
        for again in range(3):
            start = time.perf_counter()
            with flush_denormals(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                outputs = model(images)
            nn.functional.cross_entropy(outputs.float(), y).backward()
            model.zero_grad()
            if again:
                times.append(time.perf_counter() - start)
    return min(times)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vgg19-cifar")
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--density", type=float, default=0.01)
    parser.add_argument("--of-reference", type=int, metavar="STEPS", help="that the reference takes instead")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--paths", nargs="+", default=list(PATHS), choices=list(PATHS))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", skeletal.CollapseWarning)  # the reference would not tell, either

    setup = Setup(model=arguments.model, data=arguments.data, data_dir=arguments.data_dir, device="cpu")
    pruning = resolve(Pruning(density=arguments.density, prune_batch_size=128, batches_per_step=1), "quick")
    data = load_data(setup)
    model = create_model(setup, data)
    batches = list(islice(pruning_batches(data, setup, pruning, setup.seed), arguments.steps))
    total = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    left = round(arguments.density * total)
    counts = exponential(total, left, arguments.steps)
    of_reference = exponential(total, left, arguments.of_reference or arguments.steps)
    print(
        f"{cpu_model()}, {torch.get_num_threads()} threads, torch {torch.__version__}, skeletal {skeletal.__version__},"
        f" {platform.platform()}, seed {setup.seed}, {date.today()}\n{arguments.model}, {arguments.data}, FORCE,"
        f" {arguments.steps} steps of 1 x 128 images to density {arguments.density:g}, of the reference"
        f" {len(of_reference)}, {arguments.repeats} repeats\n"
    )
    found = {path: [] for path in arguments.paths}
    for _ in range(arguments.repeats):
        for path in arguments.paths:
            found[path].append(whole(path, model, batches, of_reference if path == "reference" else counts))
    rows = {path: statistics.median(times) for path, times in found.items()}
    for name, bf16 in (("float32, the network alone", False), ("bfloat16, the network alone", True)):
        rows[name] = alone(model, batches[0], bf16)
    print(markdown_head(["way", "s per step", "times faster"]))
    for name, seconds in rows.items():
        ratio = f"{rows['reference'] / seconds:.1f}" if "reference" in rows else "-"
        print(markdown_row([name, f"{seconds:.2f}", ratio]))


if __name__ == "__main__":
    main()
