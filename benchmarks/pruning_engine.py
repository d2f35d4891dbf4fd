"""What a step of FORCE costs on a skeleton that shrinks (`prune(engine="sparse")`), against dense steps, in one run.

    python benchmarks/pruning_engine.py --model vgg19-cifar
    python benchmarks/pruning_engine.py --model resnet50-cifar --dense 1 0.01

A step scores the present mask on one batch of 128 images of noise and selects. At every density the sparse engine is
made to plan, then takes steps that prune one weight each; the fastest counts, and planning is the extra time of the
first. Break-even is set aside to see both sides of it. The totals of whole schedules are computed from this: the
exponential one's steps, each at the cost of its density (interpolated in its logarithm), dense above break-even.
"""

import argparse
import math
import platform
import statistics
import time
import warnings
from datetime import date
from unittest import mock

import torch

import skeletal
from skeletal.core.model.weights import prunable_weights
from skeletal.core.table import markdown_head, markdown_row
from skeletal.engine import scoring
from skeletal.harness.models import create
from skeletal.harness.store.environment import cpu_model

BATCH, SEED = 128, 0
SCHEDULES = ((60, 0.01), (300, 0.001))  # steps and final density: the library's default and the paper's


def steps(model, batches, counts, **options):
    """Seconds of each step that is scored at one of the counts; the first, at the dense network, is not among them."""
    ends = []
    total = sum(weight.numel() for weight in prunable_weights(model).values())
    skeletal.prune(model, batches, density=counts[-1] / total, schedule=lambda *_: counts, steps=len(counts),
                   on_collapse="keep", on_step=lambda step: ends.append(time.perf_counter()), **options)  # fmt: skip
    return [after - before for before, after in zip(ends, ends[1:], strict=False)]


def sparse(model, batches, densities, total, repeats):
    """Per density: seconds of a step on a skeleton, and of planning it."""
    counts = [round(density * total) - i for density in densities for i in range(repeats + 1)]
    with mock.patch.dict(scoring.BREAK_EVEN, float32=1.0):
        seconds = [*steps(model, batches, [*counts, counts[-1] - 1], engine="sparse")]
    groups = [seconds[i * (repeats + 1) : (i + 1) * (repeats + 1)] for i in range(len(densities))]
    return {d: (min(later), first - min(later)) for d, (first, *later) in zip(densities, groups, strict=True)}


def dense(model, batches, densities, total, repeats):
    """Per density: seconds of a dense step. The density 1 means one weight less."""
    counts = [min(round(density * total), total - 1) - i for density in densities for i in range(repeats)]
    seconds = steps(model, batches, [*counts, counts[-1] - 1])
    return {d: min(seconds[i * repeats : (i + 1) * repeats]) for i, d in enumerate(densities)}


def between(points, density):
    """Linear in the logarithm of the density; the outermost values hold beyond."""
    known = sorted(points.items())
    for (low, one), (high, two) in zip(known, known[1:], strict=False):
        if low <= density <= high:
            share = math.log(density / low) / math.log(high / low)
            return one + share * (two - one)
    return known[0][1] if density < known[0][0] else known[-1][1]


def totals(steps, final, dense_seconds, sparse_seconds, break_even):
    """Seconds of a whole exponential schedule: dense throughout, and with skeletons; and dense steps in that."""
    visited = [final ** (t / steps) for t in range(steps)]
    below = [density for density in visited if density <= break_even]
    planning = statistics.median(planning for _, planning in sparse_seconds.values())
    plans = math.ceil(math.log(below[0] / below[-1]) / -math.log(scoring.REPLAN) + 1e-9) if below else 0
    on_skeletons = sum(between({d: step for d, (step, _) in sparse_seconds.items()}, density) for density in below)
    densely = [between(dense_seconds, density) for density in visited]
    before = sum(densely[: steps - len(below)])
    return sum(densely), before + on_skeletons + plans * planning, steps - len(below)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vgg19-cifar")
    parser.add_argument("--dense", nargs="+", type=float, default=[1.0, 0.1, 0.01], help="densities of dense steps")
    parser.add_argument("--sparse", nargs="+", type=float, default=[0.2, 0.1, 0.03, 0.01, 0.003, 0.001])
    parser.add_argument("--repeats", type=int, default=2)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", skeletal.CollapseWarning)  # a few steps are too few for a good mask
    torch.manual_seed(SEED)
    model = create(arguments.model, num_classes=10)
    batches = [(torch.randn(BATCH, 3, 32, 32), torch.randint(10, (BATCH,)))]
    total = sum(weight.numel() for weight in prunable_weights(model).values())
    print(
        f"{cpu_model()}, {torch.get_num_threads()} threads, torch {torch.__version__}, skeletal {skeletal.__version__},"
        f" {platform.platform()}, {date.today()}\n{arguments.model}, {total:,} weights, batch {BATCH}, float32"
    )
    of_dense = dense(model, batches, arguments.dense, total, arguments.repeats)
    of_sparse = sparse(model, batches, arguments.sparse, total, arguments.repeats)
    print("\n" + markdown_head(["density", "dense step, s", "step on a skeleton, s", "planning, s"], left=0))
    for density in sorted({*of_dense, *of_sparse}, reverse=True):
        cells = [f"{of_dense[density]:.2f}" if density in of_dense else "-"]
        cells += [f"{seconds:.2f}" for seconds in of_sparse.get(density, ())] or ["-", "-"]
        print(markdown_row([f"{density:g}", *cells]))
    print("\n" + markdown_head(["schedule", "dense, s", "sparse, s", "times faster", "dense steps in it"]))
    for count, final in SCHEDULES:
        one, two, before = totals(count, final, of_dense, of_sparse, scoring.BREAK_EVEN["float32"])
        print(markdown_row([f"{count} steps to {final:g}", f"{one:.0f}", f"{two:.0f}", f"{one / two:.1f}", before]))


if __name__ == "__main__":
    main()
