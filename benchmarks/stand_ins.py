"""Can one run of FORCE down to the lowest density stand in for separate runs at the densities above it?

For each density the mask that the one run passes on its way, and the mask of a run that ends there with as many steps:
FORCE saliency (Eq. 6) relative to the dense network, effective weights of those kept, and how their layers agree.
"""

import argparse
import platform
import warnings
from dataclasses import replace
from datetime import date
from pathlib import Path

import torch

import skeletal
from skeletal.core.masks.compare import layer_agreement
from skeletal.core.pruning.ranking import Ranking
from skeletal.core.table import markdown_head, markdown_row
from skeletal.harness.config import Pruning, Setup, resolve
from skeletal.harness.runs.finding import create_model, find_mask, load_data
from skeletal.harness.runs.measure import measured, whole

DENSITIES = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--model", default="vgg-mini")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", skeletal.CollapseWarning)
    print(f"{arguments.model}, {arguments.data}, FORCE, {arguments.steps} steps; torch {torch.__version__},", end=" ")
    print(f"{torch.get_num_threads()} threads, {platform.machine()}, {date.today()}\n")
    columns = ["seed", "density", "saliency: one run", "its own", "effective: one run", "its own", "layers agree"]
    print(markdown_head(columns, left=0))
    for seed in range(arguments.seeds):
        setup = Setup(model=arguments.model, data=arguments.data, data_dir=arguments.data_dir, seed=seed)
        data = load_data(setup)
        model = create_model(setup, data)
        ranking = Ranking("force")
        pruning = resolve(Pruning(density=min(DENSITIES), steps=arguments.steps), "quick")
        find_mask(model, data, setup, pruning, progress=False, on_step=ranking)
        dense = measured(model, data, whole(model), seed=seed)["force_saliency"]
        for density in DENSITIES:
            own = find_mask(model, data, setup, replace(pruning, density=density), progress=False)
            passed = ranking.mask(own.kept)
            both = [measured(model, data, mask, seed=seed) for mask in (passed, own)]
            saliency = [f"{found['force_saliency'] / dense:.3f}" for found in both]
            effective = [f"{found['effective_density'] / found['density']:.3f}" for found in both]
            agree = layer_agreement(passed, own)
            print(markdown_row([seed, f"{density:g}", *saliency, *effective, f"{agree:.2f}"]), flush=True)


if __name__ == "__main__":
    main()
