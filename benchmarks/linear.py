"""Forward and backward of one linear layer: ours against torch, SparseProp and SparseLab, all taking turns.

    python benchmarks/linear.py --repeat 20 --json linear.json

A layer of 2048 x 2048 and a batch of 128 by default, at three densities, weights kept at random. Forward, and backward
to input, kept weights and bias. SparseProp and SparseLab take part where they are installed:

    pip install sparselab==0.2.2
    pip install pybind11 && pip install --no-build-isolation sparseprop

Times are medians, with the fastest and slowest; ratios are to ours. A turn is the mean of `--burst` calls in a row,
after as many that do not count: training calls one library again and again, and finds its threads awake.
"""

import argparse
import copy
import json
import statistics
import warnings
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

import skeletal
from skeletal.core.model.denormals import flush_denormals
from skeletal.core.table import markdown_head, markdown_row
from skeletal.harness.bench import peers
from skeletal.harness.bench.contest import interleaved
from skeletal.harness.store.environment import environment

SEED, GOAL = 0, 1.3  # times faster than the better of the two peers


def contestants(layer, keep, x):
    """Layers of the same function, by name."""
    masked = copy.deepcopy(layer)
    masked.weight.data *= keep
    model = nn.Sequential(copy.deepcopy(layer))
    ways = {"ours": skeletal.compile(model, {"0.weight": keep}, x, path="sparse")}
    ways["torch dense"] = masked
    ways["torch CSR"] = peers.csr(masked, keep, x)
    if find_spec("sparseprop"):
        # Always its sparse layer: `peers.sparseprop` would leave a choice to SparseProp.
        ways["SparseProp"] = import_module("sparseprop.modules").SparseLinear.from_dense(masked)
    if find_spec("sparselab"):
        ways["SparseLab"] = peers.sparselab(masked, keep, x)
    return ways


def there_and_back(layer, x, gradient, burst):
    def call():
        for _ in range(burst):
            layer.zero_grad()
            x.grad = None
            layer(x).backward(gradient)

    return call


def measure(size, batch, density, repeat, burst):
    torch.manual_seed(SEED)
    layer, x = nn.Linear(size, size), torch.randn(batch, size)
    keep = torch.zeros(size * size, dtype=torch.bool)
    keep[torch.randperm(size * size)[: round(density * size * size)]] = True
    ways = contestants(layer, keep.view(size, size), x)
    with torch.no_grad():
        expected = ways["torch dense"](x)
        differences = {name: float((way(x) - expected).abs().max()) for name, way in ways.items()}
    gradient = torch.randn(batch, size)
    calls = {name: there_and_back(way, x.clone().requires_grad_(), gradient, burst) for name, way in ways.items()}
    times = interleaved(calls, repeat)
    return {name: {"ms": [1000 * t / burst for t in times[name]], "differs by": differences[name]} for name in ways}


def show(found):
    for density, ways in found.items():
        medians = {name: statistics.median(way["ms"]) for name, way in ways.items()}
        print(f"\ndensity {density}\n\n{markdown_head(['layer', 'ms', 'times ours', 'differs by'])}")
        for name, way in ways.items():
            spread = f"{medians[name]:.2f} ({min(way['ms']):.2f}-{max(way['ms']):.2f})"
            print(markdown_row([name, spread, f"{medians[name] / medians['ours']:.2f}", f"{way['differs by']:.0e}"]))
        if others := [medians[name] for name in ("SparseProp", "SparseLab") if name in medians]:
            ratio = min(others) / medians["ours"]
            verdict = "met" if ratio >= GOAL else "missed"
            print(f"\n{ratio:.2f} times faster than the better of the two, goal {GOAL}: {verdict}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--densities", type=float, nargs="+", default=[0.1, 0.01, 0.001])
    parser.add_argument("--repeat", type=int, default=20)
    parser.add_argument("--burst", type=int, default=10, help="calls in a row, of which the mean counts")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", message="Sparse ")  # torch's, about CSR tensors being new
    where = environment()
    print(", ".join(f"{key} {where[key]}" for key in ("cpu", "threads", "versions", "date")))
    size, batch, repeat, burst = arguments.size, arguments.batch, arguments.repeat, arguments.burst
    print(f"\n{size} x {size}, batch {batch}, medians of {repeat} turns of {burst} calls")
    with flush_denormals():
        found = {density: measure(size, batch, density, repeat, burst) for density in arguments.densities}
    show(found)
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"where": where, "settings": vars(arguments), "found": found}, default=str)
        )


if __name__ == "__main__":
    main()
