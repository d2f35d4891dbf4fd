"""Does a shorter training rank masks as the full one does?

    python benchmarks/schedules.py RUNS [RUNS ...]

Looks at the finished runs in some folders of run folders. Masks that were trained by several recipes (`skeletal run`
or `skeletal train` with other --epochs, --decay, --batch-size, --lr, ...) are compared: for each recipe, the rank
correlation of its test accuracies with those of the longest one, over the masks that both trained, and how often it
orders two masks of the same density alike (0.5 is chance; pairs that lie within a point by the longest are left out).
In brackets 95% intervals over 2,000 bootstrap samples of masks.
"""

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
from predictors import agreement, finished, pairs_of

from skeletal.core.table import markdown_head, markdown_row
from skeletal.harness.config import with_later

FEWEST = 4
"""masks, of which a correlation says anything"""
RECIPE = "epochs", "decay", "batch_size", "lr", "momentum", "weight_decay", "bf16"


def trained(roots):
    """Of each network and data set: the accuracy of each mask by each recipe, and the masks' densities."""
    found = defaultdict(lambda: defaultdict(dict))
    densities = {}
    for folder, mask in finished(roots):
        told = with_later(folder.config)
        key = mask.digest, told["seed"]  # which draws the initial weights, too
        densities[key] = float(f"{mask.density:.2g}")
        found[told["model"], told["data"]][tuple(told[name] for name in RECIPE)][key] = folder.result()["test"]["top1"]
    return found, densities


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of run folders")
    found, densities = trained(parser.parse_args().runs)
    for (model, data), recipes in found.items():
        longest = max(recipes, key=lambda recipe: (recipe[0], len(recipes[recipe])))
        truth = recipes[longest]
        print(f"\n{model} on {data}; the longest: {dict(zip(RECIPE, longest, strict=True))}, {len(truth)} masks\n")
        print(markdown_head([*RECIPE, "masks", "rank correlation", "same density"]))
        for recipe, accuracies in sorted(recipes.items(), key=str):
            shared = [key for key in truth if key in accuracies]
            if recipe == longest or len(shared) < FEWEST:
                continue
            rows = [{"top1": truth[key], "density": densities[key]} for key in shared]
            values = np.array([accuracies[key] for key in shared])
            top1 = np.array([truth[key] for key in shared])
            cells = agreement(values, top1, pairs_of(rows, lambda row: row["density"]))
            print(markdown_row([*map(str, recipe), str(len(shared)), *cells]))


if __name__ == "__main__":
    main()
