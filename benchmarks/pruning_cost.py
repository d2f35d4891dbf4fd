"""What a step of pruning costs: time and peak memory against a straightforward reference, in one run.

    python benchmarks/pruning_cost.py --model resnet50-cifar --json times.json
    python benchmarks/pruning_cost.py --model resnet50-cifar --repeats 0 --json peaks.json
    python benchmarks/pruning_cost.py --merge times.json peaks.json

A step is FORCE's (paper, Algorithm 1): mean gradient of one batch of 128 images of noise at the masked weights, then
the top k of |weight x gradient|. Three steps are timed: at the dense network, at density 0.1 and at 0.01. The reference
does what public implementations do, spelled out below: a deep copy, float32 in the images' own memory order, gradients
summed with their sign, and a full sort for the threshold; it neither flushes denormals nor keeps memory.

"-pages" paths run with a malloc that keeps freed memory; "-recompute" with `prune(recompute=True)`. Times are medians
over repeats in which all paths take turns; with them the fastest and slowest. Peak memory is the most that a fresh
process holds (VmHWM) while it runs the first two steps, minus the same number after its imports: it counts the model,
its batch and everything that pruning adds.
"""

import argparse
import copy
import ctypes
import json
import platform
import statistics
import subprocess
import sys
import time
import warnings
from contextlib import contextmanager, nullcontext
from datetime import date
from pathlib import Path

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import skeletal
from skeletal.core.pruning.algorithm import Step
from skeletal.core.table import markdown_head, markdown_row
from skeletal.harness.models import create
from skeletal.harness.store.environment import cpu_model

DENSITIES = (1.0, 0.1, 0.01)  # where the scores are taken; the last step prunes a little further
BATCH, SEED = 128, 0


def reference(model, batches, counts):
    """Yields after every step, with the step's mask."""
    net = copy.deepcopy(model).train()
    weights = [m.weight for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    theta = [weight.detach().clone() for weight in weights]
    mask = [torch.ones_like(weight) for weight in theta]
    for count in counts:
        for weight, initial, keep in zip(weights, theta, mask, strict=True):
            weight.data = initial * keep
        total = [torch.zeros_like(weight) for weight in theta]
        for x, y in batches:
            net.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            for summed, weight in zip(total, weights, strict=True):
                summed += weight.grad
        scores = [
            (weight * summed / len(batches)).abs().detach() for weight, summed in zip(weights, total, strict=True)
        ]
        threshold = torch.sort(torch.cat([score.flatten() for score in scores]), descending=True).values[count - 1]
        mask = [(score >= threshold).float() for score in scores]
        yield mask


def ours(model, batches, counts, **options):
    """The times at which steps end, from the library's own callback."""
    ends = []

    def note(step: Step) -> None:
        ends.append(time.perf_counter())

    skeletal.prune(model, batches, density=counts[-1] / count_weights(model), schedule=lambda *_: list(counts),
                   steps=len(counts), on_collapse="keep", on_step=note, **options)  # fmt: skip
    return ends


@contextmanager
def keep_pages():
    """Let glibc keep what is freed, as MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=... do for a whole process."""
    libc = ctypes.CDLL(None)
    trim, mmap_threshold, mmap_max, largest = -1, -3, -4, 32 * 2**20  # malloc.h; the last as glibc's own ends up
    for option, value in ((mmap_max, 0), (trim, 2**31 - 1)):
        libc.mallopt(option, value)
    try:
        yield
    finally:
        for option, value in ((mmap_max, 65536), (mmap_threshold, largest), (trim, 2 * largest)):
            libc.mallopt(option, value)
        libc.malloc_trim(0)


def count_weights(model):
    return sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear))


def seconds(path, model, batches, counts):
    """Of each step; what comes before the first and after the last is no step's."""
    options = dict(PATHS[path])
    pages = options.pop("pages", False)
    with keep_pages() if pages else nullcontext():
        start = time.perf_counter()
        if path.startswith("reference"):
            ends = [time.perf_counter() for _ in reference(model, batches, counts)]
        else:
            ends = ours(model, batches, counts, **options)
    return [after - before for before, after in zip([start, *ends], ends, strict=False)]


PATHS = {
    "reference": {},
    "reference-pages": {"pages": True},
    "float32": {},
    "float32-pages": {"pages": True},
    "float32-recompute": {"recompute": True},
    "float32-recompute-pages": {"pages": True, "recompute": True},
    "bfloat16-recompute": {"precision": "bfloat16", "recompute": True},
    "bfloat16": {"precision": "bfloat16"},
    "bfloat16-pages": {"precision": "bfloat16", "pages": True},
}


def setting(name):
    torch.manual_seed(SEED)
    model = create(name, num_classes=10)
    batches = [(torch.randn(BATCH, 3, 32, 32), torch.randint(10, (BATCH,)))]
    total = count_weights(model)
    return model, batches, [round(density * total) for density in (*DENSITIES[1:], 0.009)]


def highest():
    """The most bytes of memory this process has held at once. (`ru_maxrss` would start at the parent's.)"""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def peak(path, name):
    """Bytes that a path adds to this process, which has to be fresh."""
    before = highest()
    model, batches, counts = setting(name)
    seconds(path, model, batches, counts[:2])
    return highest() - before


def measure(name, repeats, paths):
    """Seconds of every step of every path, the paths taking turns; no repeats measure the peaks instead."""
    if not repeats:
        command = [sys.executable, __file__, "--model", name, "--peak"]
        peaks = {path: subprocess.run([*command, path], check=True, capture_output=True).stdout for path in paths}
        return {path: {"seconds": [], "peak": int(number)} for path, number in peaks.items()}
    setup = setting(name)
    found = {path: {"seconds": [], "peak": 0} for path in paths}
    for _ in range(repeats):
        for path in paths:
            found[path]["seconds"].append(seconds(path, *setup))
    return found


def merged(files):
    """What several runs on the same machine have found of the same network."""
    runs = [json.loads(file.read_text()) for file in files]
    if len({run["model"] for run in runs}) > 1:
        raise SystemExit(f"these are of several networks: {', '.join(run['model'] for run in runs)}")
    found = {}
    for path, one in ((path, one) for run in runs for path, one in run["paths"].items()):
        known = found.setdefault(path, {"seconds": [], "peak": 0})
        found[path] = {"seconds": known["seconds"] + one["seconds"], "peak": max(known["peak"], one["peak"])}
    return runs[0]["where"] | {"repeats": len(found["reference"]["seconds"])}, runs[0]["model"], found


def show(where, name, found):
    print(", ".join(f"{key} {value}" for key, value in where.items()))
    print(f"\n{name}, batch {BATCH}, FORCE\n")
    steps = [f"s per step at density {density:g}" for density in DENSITIES]
    print(markdown_head(["path", *steps, "times faster", "peak GB", "of the reference"]))
    columns = {path: list(zip(*one["seconds"], strict=True)) for path, one in found.items()}
    medians = {path: [statistics.median(column) for column in columns[path]] for path in found}
    for path, one in found.items():
        cells = [f"{statistics.median(c):.2f} ({min(c):.2f}-{max(c):.2f})" for c in columns[path]] or ["-"] * 3
        ratios = [f"{base / ours:.1f}" for base, ours in zip(medians["reference"], medians[path], strict=False)]
        share = one["peak"] / found["reference"]["peak"] if one["peak"] else float("nan")
        print(markdown_row([path, *cells, " / ".join(ratios), f"{one['peak'] / 1e9:.2f}", f"{share:.0%}"]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vgg19-cifar")
    parser.add_argument("--repeats", type=int, default=3, help="0 measures peak memory, and no times")
    parser.add_argument("--paths", nargs="+", default=list(PATHS), choices=list(PATHS))
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--merge", type=Path, nargs="+", metavar="JSON", help="one table from the files of several runs"
    )
    parser.add_argument("--peak", choices=list(PATHS), help="print the peak of one path in bytes, and nothing else")
    arguments = parser.parse_args()
    if arguments.merge:
        show(*merged(arguments.merge))
        return
    checkpoint(torch.relu, torch.zeros(1, requires_grad=True), use_reentrant=False)  # imports half of torch
    warnings.simplefilter("ignore", skeletal.CollapseWarning)  # three steps are too few for a good mask
    if arguments.peak:
        print(peak(arguments.peak, arguments.model))
        return
    where = {
        "processor": cpu_model(), "threads": torch.get_num_threads(), "torch": str(torch.__version__),
        "skeletal": skeletal.__version__, "system": platform.platform(), "seed": SEED, "date": str(date.today()),
        "repeats": arguments.repeats,
    }  # fmt: skip
    found = measure(arguments.model, arguments.repeats, arguments.paths)
    if arguments.json:
        arguments.json.write_text(json.dumps({"where": where, "model": arguments.model, "paths": found}, indent=1))
    show(where, arguments.model, found)


if __name__ == "__main__":
    main()
