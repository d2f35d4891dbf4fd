"""Does a mask depend on the device and precision that found it? FORCE on VGG-19, many seeds, judged without training.

    python benchmarks/masks_by_device.py find --device cuda --precisions float32 tf32 bfloat16 --out gpu.jsonl
    python benchmarks/masks_by_device.py find --device cpu --precisions float32 --out cpu.jsonl
    python benchmarks/masks_by_device.py table gpu.jsonl cpu.jsonl

Masks are chaotic: one weight more at one step leads to another mask, so the comparison is not of single masks but of
what many have in common. The same seed starts from the same weights and draws the same batches on every device. Per
mask: the narrowest place (the fewest live output channels of a hidden layer, and the fewest effective weights of one),
effective weights, and saliency and gradient norm on ten batches it has not seen. "float32" turns TF32 off, even in
convolutions, where torch has it on by default; "tf32" turns it on. Each group of seeds is compared with that of the
first line by the Mann-Whitney test (two-sided): systematic differences have a small p.
"""

import argparse
import json
import statistics
import time
import warnings
from dataclasses import asdict
from itertools import groupby, islice
from pathlib import Path

import torch
from scipy.stats import mannwhitneyu

import skeletal
from skeletal.core.diagnosis.saliency import measure_saliency
from skeletal.core.table import markdown_head, markdown_row
from skeletal.harness.config import Setup
from skeletal.harness.data import Stream, resident
from skeletal.harness.devices import pick_device, tuned
from skeletal.harness.runs.finding import create_model, load_data
from skeletal.harness.runs.public_codes import LOSSES
from skeletal.harness.store.environment import environment

BATCH = 128
SETTINGS = ("model", "density", "steps", "batches_per_step", "batch_size", "schedule", "loss", "bn_mode", "engine")
COLUMNS = ("channels", "weights", "effective", "force", "gradient_norm", "masked_loss")


def allow_tf32(allowed):
    """In convolutions and matrix products alike."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


def judged(model, mask, data, device, seed):
    """What a mask leaves, by numbers that need no training."""
    batches = Stream(resident(data.train, device), BATCH, seed + 1_000_000)
    allow_tf32(False)
    saliency = asdict(measure_saliency(model, islice(batches, 10), mask, count=10))
    saliency["masked_loss"] = saliency.pop("loss")
    example = next(iter(batches))[0][:2]
    layers = skeletal.diagnose(model, mask, example).layers
    hidden = layers[:-1]
    live = [layer.shape[0] - layer.dead_outputs for layer in hidden]
    return {
        "channels": min(live),
        "weights": min(layer.effective for layer in layers),
        "effective": sum(layer.effective for layer in layers),
        "live": live,
        "kept": [layer.kept for layer in layers],
        **saliency,
    }


def find(args):
    """A line of JSON for each seed and precision."""
    device = pick_device(args.device)
    for seed in range(args.seeds):
        setup = Setup(model=args.model, data="cifar10", data_dir=args.data_dir, seed=seed, device=args.device)
        data = load_data(setup)
        for precision in args.precisions:
            model = create_model(setup, data).to(device)
            allow_tf32(precision == "tf32")
            started = time.perf_counter()
            with warnings.catch_warnings(), tuned(device):
                warnings.simplefilter("ignore", skeletal.CollapseWarning)
                mask = skeletal.prune(
                    model,
                    Stream(resident(data.train, device), args.batch_size, seed),
                    density=args.density,
                    steps=args.steps,
                    schedule=args.schedule,
                    batches_per_step=args.batches_per_step,
                    loss=LOSSES[args.loss],
                    bn_mode=args.bn_mode,
                    precision="bfloat16" if precision == "bfloat16" else "float32",
                    engine=args.engine,
                    on_collapse="keep",
                    seed=seed,
                )
            seconds = time.perf_counter() - started
            row = {name: getattr(args, name) for name in SETTINGS}
            row |= {"device": device.type, "precision": precision, "seed": seed, "seconds": seconds}
            row |= judged(model, mask, data, device, seed) | {"environment": environment()}
            with args.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
            if args.masks is not None:
                args.masks.mkdir(parents=True, exist_ok=True)
                mask.save(args.masks / f"{device.type}-{precision}-{seed}.safetensors")
            print(seed, precision, f"{seconds:.1f} s", *(f"{name} {row[name]:.4g}" for name in COLUMNS), flush=True)


def group_of(row):
    """What makes a group of seeds."""
    return *(row[name] for name in SETTINGS), row["device"], row["precision"]


def table(args):
    """Median and range per group, and whether it differs from the first."""
    rows = [json.loads(line) for file in args.files for line in file.read_text().splitlines()]
    groups = {key: list(found) for key, found in groupby(sorted(rows, key=group_of), key=group_of)}
    first = group_of(rows[0])
    print(markdown_head([", ".join([*SETTINGS, "device", "precision"]), "seeds", *COLUMNS]))
    for key, found in groups.items():
        cells = []
        for name in COLUMNS:
            values = [row[name] for row in found]
            cell = f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"
            if key != first:
                cell += f", p {mannwhitneyu(values, [row[name] for row in groups[first]]).pvalue:.2f}"
            cells.append(cell)
        print(markdown_row([", ".join(map(str, key)), len(found), *cells]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    finds = commands.add_parser("find")
    finds.set_defaults(run=find)
    finds.add_argument("--model", default="vgg19-cifar")
    finds.add_argument("--data-dir", type=Path)
    finds.add_argument("--device", default="auto")
    finds.add_argument("--engine", default="dense", choices=("dense", "sparse"))
    finds.add_argument("--batches-per-step", type=int, default=1)
    finds.add_argument("--batch-size", type=int, default=128)
    finds.add_argument("--schedule", default="exponential")
    finds.add_argument("--loss", default="cross-entropy", choices=LOSSES)
    finds.add_argument("--bn-mode", default="train")
    finds.add_argument("--precisions", nargs="+", default=["float32"], choices=("float32", "tf32", "bfloat16"))
    finds.add_argument("--density", type=float, default=0.001)
    finds.add_argument("--steps", type=int, default=60)
    finds.add_argument("--seeds", type=int, default=10)
    finds.add_argument("--out", type=Path, required=True)
    finds.add_argument("--masks", type=Path, help="folder to keep the masks in")
    tables = commands.add_parser("table")
    tables.set_defaults(run=table)
    tables.add_argument("files", type=Path, nargs="+")
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
