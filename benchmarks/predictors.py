"""Which number, known before training, tells how well a mask will train?

    python benchmarks/predictors.py judge RUNS [RUNS ...] --out masks.jsonl
    python benchmarks/predictors.py run --data-dir D --epochs 10 --decay one-cycle --seeds 3 --out masks.jsonl
    python benchmarks/predictors.py table masks.jsonl

`judge` looks at every finished run of some folders that found its mask at initialization; `run` finds masks of several
settings, judges them and trains them by the recipe of the paper's CIFAR-10 runs (--epochs of it), as many at once as
--together says. Both take each number below at the initialization, on training images that the mask was not found on.
`table` shows how they go together with the test accuracy: Spearman's rank correlation over all masks, with its 95%
interval over 2,000 bootstrap samples, and how often the better number had the better accuracy, of all pairs of masks
with the same density, and of those that differ in the seed alone (0.5 is chance; pairs that lie within a point of
accuracy are left out). Always quote accuracies together with the number of epochs.
"""

import argparse
import itertools
import json
import math
import time
import warnings
from collections import defaultdict
from dataclasses import asdict, fields
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from masks_by_device import allow_tf32, judged
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_flow
from scipy.stats import spearmanr

import skeletal
from skeletal.core.diagnosis.effective import effective_weights
from skeletal.core.model.preserve import preserve_model, state_of, with_parameters
from skeletal.core.pruning.criteria.flow import counting_state
from skeletal.core.table import markdown_head, markdown_row
from skeletal.harness.config import IMP, Pruning, Setup, Training, resolve
from skeletal.harness.data import Stream, resident
from skeletal.harness.devices import pick_device, tuned
from skeletal.harness.runs.best_of import early_losses
from skeletal.harness.runs.finding import create_model, load_data
from skeletal.harness.runs.load import setup_of
from skeletal.harness.store.environment import environment
from skeletal.harness.store.folders import MASK, RunFolder
from skeletal.harness.training.several import train_many
from skeletal.harness.training.task import Task

BATCH = 128
SETTINGS = {
    "FORCE": dict(method="force", steps=60),
    "FORCE, T = 300": dict(method="force", steps=300),
    "FORCE, 10 batches a step": dict(method="force", steps=60, batches_per_step=10),
    "FORCE, scored in evaluation mode": dict(method="force", steps=60, bn_mode="eval"),
    "FORCE-floor": dict(method="force-floor", steps=60),
    "FORCE-floor, 10 batches a step": dict(method="force-floor", steps=60, batches_per_step=10),
    "FORCE-floor, scored in evaluation mode": dict(method="force-floor", steps=60, bn_mode="eval"),
    "SynFlow": dict(method="synflow"),
    "random-erk": dict(method="random-erk"),
}
MEASURES = {
    "force": "saliency (Eq. 6)",
    "gradient_norm": "gradient norm",
    "channels": "fewest live channels of a hidden layer",
    "weights": "fewest effective weights of a layer",
    "effective": "effective weights of all layers",
    "cut": "weights of the smallest cut between input and output",
    "paths": "number of paths from input to output",
    "rank": "smallest effective rank of a hidden layer's outputs",
    "early": "loss, mean over steps 41 to 50 of training",
}
ALWAYS = "steps", "batches_per_step", "bn_mode"
"""settings that the name of a mask's setting has, even where they are the usual ones"""
LOWER_IS_BETTER = {"early"}


def paths(model, mask, example):
    """The logarithm (base 10) of the number of paths of kept weights, summed over outputs and pixels."""
    kept = {name: keep.to(example.device, torch.float64) for name, keep in mask.items()}
    with preserve_model(model, training=False, seed=0), torch.no_grad():
        state = counting_state(model, mask) | kept
        found = with_parameters(model, state, lambda: model(torch.ones_like(example[:1], dtype=torch.float64)))
    return math.log10(max(found.sum().item(), 1e-300))


def smallest_cut(effective):
    """How few effective weights cut a chain of layers, channels being its nodes; None where layers are no chain."""
    shapes = [keep.shape for keep in effective.values()]
    if any(before[0] != after[1] for before, after in itertools.pairwise(shapes)):
        return None
    first = np.cumsum([1, shapes[0][1], *(shape[0] for shape in shapes)])  # of each layer of nodes; 0 is the source
    sink, plenty = first[-1], np.int32(2**30)
    edges = [(0, first[0] + channel, plenty) for channel in range(shapes[0][1])]
    for at, (keep, next_) in enumerate(zip(effective.values(), first[1:-1], strict=True)):
        between = keep.flatten(2).sum(2) if keep.dim() > 2 else keep.long()
        out, into = between.nonzero(as_tuple=True)
        weights = between[out, into].tolist()
        edges += zip((first[at] + into).tolist(), (next_ + out).tolist(), weights, strict=True)
    edges += [(node, sink, plenty) for node in range(first[-2], first[-1])]
    sources, targets, weights = zip(*edges, strict=True)
    graph = csr_matrix((np.array(weights, np.int32), (sources, targets)), shape=(sink + 1, sink + 1))
    return int(maximum_flow(graph, 0, sink).flow_value)


def smallest_rank(model, mask, images):
    """The effective rank (e to the entropy of singular values, Roy and Vetterli 2007) of hidden layers, the least."""
    owners = {id(parameter): module for module in model.modules() for parameter in module._parameters.values()}
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    layers = [owners[id(model.get_parameter(name))] for name in list(mask)[:-1]]
    ranks = []

    def look(_, __, outputs):
        features = outputs.detach().movedim(1, -1).flatten(0, -2).double()
        values = torch.linalg.eigvalsh(features.T.cov()).clamp(min=0).sqrt()
        share = values / values.sum().clamp_min(1e-30)
        ranks.append(torch.special.entr(share).sum().exp().item() if values.sum() > 0 else 0.0)

    masked = state_of(model) | {name: weights[name] * keep.to(weights[name].device) for name, keep in mask.items()}
    with preserve_model(model, training=True, seed=0), torch.no_grad():
        hooks = [layer.register_forward_hook(look) for layer in layers]
        with_parameters(model, masked, lambda: model(images))
        for hook in hooks:
            hook.remove()
    return min(ranks)


def measures(model, mask, data, device, seed):
    """All of `MEASURES`, by name."""
    images, _ = next(iter(Stream(resident(data.train, device), 512, seed + 2_000_000)))
    found = {name: value for name, value in judged(model, mask, data, device, seed).items() if name in MEASURES}
    with preserve_model(model, training=False, seed=0):
        effective = effective_weights(model, mask, (images[:2], None))[0]
    found |= {"cut": smallest_cut(effective), "paths": paths(model, mask, images)}
    found["rank"] = smallest_rank(model, mask, images)
    batches = Stream(resident(data.train, device), BATCH, seed + 3_000_000)
    return found | {"early": early_losses(model, mask, batches, rate=0.1, weight_decay=5e-4)[1]}


def write(row, file):
    """One line of JSON, and a line on the screen."""
    with file.open("a") as lines:
        lines.write(json.dumps(row) + "\n")
    shown = (f"{name} {row[name]:.4g}" for name in MEASURES if row[name] is not None)
    print(row["setting"], row["density"], row["seed"], *shown, f"test {row['top1']:.2f}%", flush=True)


def finished(roots):
    """Folder and mask of each finished run in some folders of run folders whose mask was found before training."""
    for file in sorted(path for root in roots for path in root.glob("*/result.json")):
        folder = RunFolder.at(file.parent)
        stayed = folder.config.get("update", "none") == "none"
        if (
            stayed
            and folder.config.get("method") != IMP
            and "test" in folder.result()
            and (folder.path / MASK).exists()
        ):
            yield folder, skeletal.Mask.load(folder.path / MASK)


def judge(args):
    """A line for each finished run whose mask was found before training."""
    device = pick_device(args.device)
    for folder, mask in finished(args.runs):
        if mask.density > args.densest:
            continue
        told, result = folder.config, folder.result()
        setup = setup_of(folder, args.data_dir, args.device)
        data = load_data(setup)
        method = mask.metadata["method"]
        usual = asdict(resolve(Pruning(method=method), "cifar10")) | dict.fromkeys(ALWAYS)
        many = {f.name: told[f.name] for f in fields(Pruning) if f.name in told and told[f.name] != usual[f.name]}
        many = {name: value for name, value in many.items() if name not in ("density", "prune_batch_size")}
        row = {"setting": ", ".join([method, *(f"{name} {value}" for name, value in many.items())])}
        row |= {name: told[name] for name in ("model", "data", "seed", "epochs")}
        row |= {"density": told.get("density") or float(f"{mask.density:.2g}")}
        row |= measures(create_model(setup, data).to(device), mask, data, device, setup.seed)
        write(row | {"top1": result["test"]["top1"], "environment": environment()}, args.out)


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
        row = {"setting": name, "seed": seed, "model": args.model, "data": "cifar10", "density": args.density}
        row |= {"epochs": args.epochs, "prune_seconds": time.perf_counter() - started}
        row |= measures(model, mask, data, device, seed)
        training = Training(epochs=args.epochs, bf16=True, decay=args.decay, channels_last=device.type != "cpu")
        allow_tf32(True)
        training = resolve(training, "cifar10")
        settings = {"setting": name, "seed": seed, "density": args.density, "training": asdict(training)}
        folder = RunFolder.open(args.runs, f"{args.model}-predictors", settings)  # an interrupted training goes on
        yield row, Task(model=model, data=data, training=training, device=device, mask=mask, folder=folder, seed=seed)


def run(args):
    """A line for each mask, found, judged and trained here."""
    device = pick_device(args.device)
    found = (made for name in args.settings for made in tasks(args, name, range(args.seeds), device))
    while group := list(islice(found, args.together)):
        for number, outcome in train_many([task for _, task in group]):
            if isinstance(outcome, Exception):
                raise outcome
            trained = {"top1": outcome.test.top1, "train_loss": outcome.train.loss, "train_seconds": outcome.seconds}
            write(group[number][0] | trained | {"environment": environment()}, args.out)


def pairs_of(rows, key):
    """Numbers of two rows that share a key and differ in accuracy by more than a point, the better first."""
    groups = defaultdict(list)
    for number, row in enumerate(rows):
        groups[key(row)].append(number)
    found = [pair for group in groups.values() for pair in itertools.combinations(group, 2)]
    ordered = (sorted(pair, key=lambda number: -rows[number]["top1"]) for pair in found)
    return np.array([pair for pair in ordered if rows[pair[0]]["top1"] - rows[pair[1]]["top1"] > 1], int).reshape(-1, 2)


def shown(value, samples):
    """A number and its 95% interval."""
    low, high = np.nanquantile(samples, (0.025, 0.975))
    return f"{value:.2f} ({low:.2f} to {high:.2f})"


def agreement(values, top1, *groups_of_pairs):
    """How values go together with the accuracy: their rank correlation, and the pairs of each group ordered right."""
    draws = np.random.default_rng(0).integers(len(top1), size=(2_000, len(top1)))
    counts = np.array([np.bincount(draw, minlength=len(top1)) for draw in draws], np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # samples of equal masks have no correlation
        cells = [shown(spearmanr(values, top1).statistic, [spearmanr(values[d], top1[d]).statistic for d in draws])]
        for pairs in groups_of_pairs:
            better, worse = values[pairs[:, 0]], values[pairs[:, 1]]
            right = (better > worse) + 0.5 * (better == worse)
            weights = counts[:, pairs[:, 0]] * counts[:, pairs[:, 1]]
            cells.append(shown(right.mean(), (weights * right).sum(1) / weights.sum(1)) if len(pairs) else "-")
    return cells


def table(args):
    """How the numbers go together with the accuracy."""
    rows = [json.loads(line) for file in args.files for line in file.read_text().splitlines()]
    rows = [row for row in rows if args.densities is None or row["density"] in args.densities]
    top1 = np.array([row["top1"] for row in rows])
    alike = pairs_of(rows, lambda row: (row["model"], row["data"], row["density"]))
    seeds = pairs_of(rows, lambda row: (row["model"], row["data"], row["density"], row["setting"]))
    print(f"{len(rows)} masks, {len(alike)} pairs of the same density, {len(seeds)} that differ in the seed alone\n")
    print(markdown_head(["known before training", "rank correlation", "same density", "seed alone"]))
    for name, words in MEASURES.items():
        if any(row[name] is None for row in rows):
            continue
        values = np.array([row[name] for row in rows], np.float64) * (-1 if name in LOWER_IS_BETTER else 1)
        print(markdown_row([words, *agreement(values, top1, alike, seeds)]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    judges = commands.add_parser("judge")
    judges.set_defaults(go=judge)
    judges.add_argument("runs", type=Path, nargs="+", help="folders of run folders")
    judges.add_argument("--densest", type=float, default=0.1, help="leave denser masks out")
    runs = commands.add_parser("run")
    runs.set_defaults(go=run)
    runs.add_argument("--model", default="vgg19-cifar")
    runs.add_argument("--density", type=float, default=0.001)
    runs.add_argument("--epochs", type=int, default=30)
    runs.add_argument("--decay", choices=("steps", "one-cycle"), default="one-cycle")
    runs.add_argument("--seeds", type=int, default=2)
    runs.add_argument("--together", type=int, default=4)
    runs.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=SETTINGS)
    runs.add_argument("--runs", type=Path, default=Path("runs"), help="folder of run folders")
    for command in (judges, runs):
        command.add_argument("--data-dir", type=Path)
        command.add_argument("--device", default="auto")
        command.add_argument("--out", type=Path, required=True)
    tables = commands.add_parser("table")
    tables.set_defaults(go=table)
    tables.add_argument("files", type=Path, nargs="+")
    tables.add_argument("--densities", type=float, nargs="+")
    args = parser.parse_args()
    args.go(args)


if __name__ == "__main__":
    main()
