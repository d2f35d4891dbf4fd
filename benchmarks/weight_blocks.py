"""One convolution with batch norm in bfloat16: weight by weight, and in blocks on the matrix unit, taking turns.

    python benchmarks/weight_blocks.py [--densities 0.03 0.06 0.1 0.4] [--repeat 9]

Forward is the convolution of maps that are normalised on the way, with the moments of its output; backward is both of
its gradients, through batch norm. The results show from which density blocks pay off (`skeletal.engine.plan.plan`).
"""

import argparse
import statistics

import numpy as np
import torch

from skeletal.core.model.denormals import flush_denormals
from skeletal.core.table import markdown_head, markdown_row
from skeletal.engine.codegen import amx
from skeletal.engine.ops.affine import Affine
from skeletal.engine.ops.calls import run_convolution, run_gradients
from skeletal.engine.ops.launch_args import NormArgs, NormGradArgs
from skeletal.engine.plan import plan as plans
from skeletal.engine.plan.geometry import Shape
from skeletal.engine.plan.grid import MapGrid, pack
from skeletal.engine.plan.plan import ConvPlan
from skeletal.harness.bench.contest import interleaved
from skeletal.harness.store.environment import environment

BATCH = 128
LAYERS = ((64, 64, 3, 32), (64, 256, 1, 32), (256, 64, 1, 32), (128, 512, 1, 16), (256, 256, 3, 8), (512, 512, 3, 4))
"""inputs, outputs, kernel, height and width"""


def calls(inputs, outputs, kernel, size, density):
    """Forward and backward of a layer in both ways."""
    torch.manual_seed(0)
    mask = torch.rand(outputs, inputs, kernel, kernel) < density
    grid = MapGrid(size, size, 1)
    x, gradient = (pack(torch.randn(BATCH, channels, size, size).bfloat16(), grid) for channels in (inputs, outputs))
    values = torch.randn(int(mask.sum())) * 0.05
    ready = Affine(np.ones(inputs, np.float32), np.zeros(inputs, np.float32), True)
    running, ones, zeros = torch.zeros(2, outputs), torch.ones(outputs), torch.zeros(outputs)
    state = BATCH * size * size, 1, 0.1, 1e-5, np.empty((3, outputs))
    then = Affine(*np.empty((2, outputs), np.float32), True)
    norm = NormArgs([*running, ones, zeros], state, then, None, None)
    found = {}
    for way, least in (("weight by weight", 2.0), ("weight blocks", 0.0)):
        plans._FULL = least
        plan = ConvPlan(
            mask, Shape((1, 1), (kernel // 2,) * 2, (1, 1), 1, (kernel, kernel)), grid, grid, in_parts=False
        )

        def forward(plan=plan):
            return run_convolution(plan, x, values, BATCH, affine=ready, norm=norm)

        y = forward()
        back = NormGradArgs((y, None, None), state, then, (torch.empty(outputs), torch.empty(outputs)))

        def backward(plan=plan, back=back):
            return run_gradients(plan, gradient, x, values, BATCH, affine=ready, norm=back)

        backward()  # plans
        found |= {f"forward, {way}": forward, f"backward, {way}": backward}
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--densities", type=float, nargs="+", default=[0.03, 0.06, 0.1, 0.4])
    parser.add_argument("--repeat", type=int, default=9)
    arguments = parser.parse_args()
    if not amx.available():
        raise SystemExit("this CPU has no matrix unit (AMX), or the system does not let it be used")
    where = environment()
    print(", ".join(f"{key} {where[key]}" for key in ("cpu", "threads", "versions", "date")))
    print(f"batch {BATCH}, milliseconds, medians of {arguments.repeat}\n")
    both = ("weight by weight", "weight blocks")
    print(markdown_head(["layer", "density", *(f"{what}, {way}" for what in ("forward", "backward") for way in both)]))
    for inputs, outputs, kernel, size in LAYERS:
        for density in arguments.densities:
            with flush_denormals():
                times = interleaved(calls(inputs, outputs, kernel, size, density), arguments.repeat)
            ms = {name: f"{1000 * statistics.median(found):.1f}" for name, found in times.items()}
            order = [ms[f"{what}, {way}"] for what in ("forward", "backward") for way in both]
            what = f"{inputs} to {outputs}, {kernel}x{kernel}, {size}x{size}"
            print(markdown_row([what, density, *order]), flush=True)


if __name__ == "__main__":
    main()
