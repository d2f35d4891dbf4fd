"""Does the narrowest place of a mask tell how well it trains? Masks of several settings, trained side by side.

    python benchmarks/narrowest.py run --data-dir D --epochs 30 --seeds 2 --out masks.jsonl
    python benchmarks/narrowest.py table masks.jsonl

Each mask is judged before training as in `masks_by_device.py`, then trained by the recipe of the paper's CIFAR-10 runs
(--epochs of it, milestones in proportion), as many at once as --together says. The table has a line per mask, then the
rank correlation (Spearman) of each number known before training with the test accuracy, and its 95% interval over
10,000 bootstrap samples of the masks. Always quote accuracies together with the number of epochs.
"""

import argparse
import json
import time
import warnings
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import numpy as np
from masks_by_device import COLUMNS, allow_tf32, judged
from scipy.stats import spearmanr

import skeletal
from skeletal.harness.config import Setup, Training, resolve
from skeletal.harness.data import Stream, resident
from skeletal.harness.devices import pick_device, tuned
from skeletal.harness.runs.finding import create_model, load_data
from skeletal.harness.store.environment import environment
from skeletal.harness.store.folders import RunFolder
from skeletal.harness.training.several import train_many
from skeletal.harness.training.task import Task

BATCH = 128
SETTINGS = {
    "FORCE": dict(method="force", steps=60),
    "FORCE, T = 300": dict(method="force", steps=300),
    "FORCE, 4 batches a step": dict(method="force", steps=60, batches_per_step=4),
    "FORCE, 10 batches a step": dict(method="force", steps=60, batches_per_step=10),
    "FORCE, scored in evaluation mode": dict(method="force", steps=60, bn_mode="eval"),
    "FORCE, 10 batches, evaluation mode": dict(method="force", steps=60, batches_per_step=10, bn_mode="eval"),
    "SynFlow": dict(method="synflow"),
    "random-erk": dict(method="random-erk"),
}


def tasks(args, name, seeds, device):
    """Of a setting: what was known of each seed's mask, and its training."""
    for seed in seeds:
        setup = Setup(model=args.model, data="cifar10", data_dir=args.data_dir, seed=seed, device=args.device)
        data = load_data(setup)
        model = create_model(setup, data).to(device)
        allow_tf32(False)
        started = time.perf_counter()
        with warnings.catch_warnings(), tuned(device):
            warnings.simplefilter("ignore", skeletal.CollapseWarning)
            batches = Stream(resident(data.train, device), BATCH, seed)
            mask = skeletal.prune(model, batches, density=args.density, on_collapse="keep", seed=seed, **SETTINGS[name])
        row = {"setting": name, "seed": seed, "model": args.model, "density": args.density, "epochs": args.epochs}
        row |= {"prune_seconds": time.perf_counter() - started} | judged(model, mask, data, device, seed)
        training = Training(epochs=args.epochs, bf16=device.type != "cpu", channels_last=device.type != "cpu")
        allow_tf32(True)
        training = resolve(training, "cifar10")
        settings = {"setting": name, "seed": seed, "density": args.density, "training": asdict(training)}
        folder = RunFolder.open(args.runs, f"{args.model}-narrowest", settings)  # an interrupted training goes on
        yield row, Task(model=model, data=data, training=training, device=device, mask=mask, folder=folder, seed=seed)


def measure(args):
    """A line of JSON for each trained mask."""
    device = pick_device(args.device)
    found = [made for name in args.settings for made in tasks(args, name, range(args.seeds), device)]
    for row, _ in found:
        print(row["setting"], row["seed"], *(f"{name} {row[name]:.4g}" for name in COLUMNS), flush=True)
    left = iter(found)
    while group := list(islice(left, args.together)):
        for number, outcome in train_many([task for _, task in group]):
            if isinstance(outcome, Exception):
                raise outcome
            row = group[number][0] | {"top1": outcome.test.top1, "train_loss": outcome.train.loss}
            row |= {"train_seconds": outcome.seconds, "environment": environment()}
            with args.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(row["setting"], row["seed"], f"test {outcome.test.top1:.2f}%", flush=True)


def table(args):
    """What was known, what came of it, and how the two go together."""
    rows = [json.loads(line) for file in args.files for line in file.read_text().splitlines()]
    print(
        "| mask | seed | epochs | " + " | ".join(COLUMNS) + " | test top-1, % |\n|---|" + "---:|" * (len(COLUMNS) + 3)
    )
    for row in sorted(rows, key=lambda row: row["top1"]):
        cells = " | ".join(f"{row[name]:.3g}" for name in COLUMNS)
        print(f"| {row['setting']} | {row['seed']} | {row['epochs']} | {cells} | {row['top1']:.1f} |")
    top1 = np.array([row["top1"] for row in rows])
    draws = np.random.default_rng(0).integers(len(rows), size=(10_000, len(rows)))
    print("\n| known before training | rank correlation with accuracy |\n|---|---:|")
    for name in COLUMNS:
        values = np.array([row[name] for row in rows])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # samples of equal masks have no correlation
            samples = [spearmanr(values[draw], top1[draw]).statistic for draw in draws]
        low, high = np.nanquantile(samples, (0.025, 0.975))
        print(f"| {name} | {spearmanr(values, top1).statistic:.2f} ({low:.2f} to {high:.2f}) |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    runs = commands.add_parser("run")
    runs.set_defaults(run=measure)
    runs.add_argument("--model", default="vgg19-cifar")
    runs.add_argument("--data-dir", type=Path)
    runs.add_argument("--device", default="auto")
    runs.add_argument("--density", type=float, default=0.001)
    runs.add_argument("--epochs", type=int, default=30)
    runs.add_argument("--seeds", type=int, default=2)
    runs.add_argument("--together", type=int, default=4)
    runs.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=SETTINGS)
    runs.add_argument("--runs", type=Path, default=Path("runs"), help="folder of run folders")
    runs.add_argument("--out", type=Path, required=True)
    tables = commands.add_parser("table")
    tables.set_defaults(run=table)
    tables.add_argument("files", type=Path, nargs="+")
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
