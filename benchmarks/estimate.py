"""How good `skeletal estimate` is: the estimate and then the run itself, for small settings, in one process.

    OMP_NUM_THREADS=1 python benchmarks/estimate.py --clock cpu --data-dir D

`--clock cpu` counts CPU seconds instead of wall-clock seconds, for machines that other programs keep busy; with one
thread, that is what a quiet machine would need.
"""

import argparse
import tempfile
import time
from pathlib import Path

from skeletal.core.table import markdown_head, markdown_row

SETTINGS = {
    "vgg-mini, digits, FORCE, 30 steps, 10 epochs": (
        dict(), dict(steps=30, density=0.1), dict(epochs=10, engine="dense"),
    ),
    "vgg-mini, digits, FORCE, 30 steps, 10 epochs, sparse engine": (
        dict(), dict(steps=30, density=0.02), dict(epochs=10, engine="sparse"),
    ),
    "lenet5, Fashion-MNIST, FORCE, 60 steps, 1 epoch": (
        dict(model="lenet5", data="fashion-mnist"), dict(density=0.1), dict(epochs=1, engine="dense"),
    ),
    "lenet5, Fashion-MNIST, SNIP-MB, 100 batches, 1 epoch": (
        dict(model="lenet5", data="fashion-mnist"),
        dict(method="snip", batches_per_step=100, density=0.1),
        dict(epochs=1, engine="dense"),
    ),
    "resnet20-cifar, digits, GRASP-It, 20 steps of 3 batches, 2 epochs": (
        dict(model="resnet20-cifar"),
        dict(method="grasp-it", steps=20, batches_per_step=3, density=0.1),
        dict(epochs=2, engine="dense"),
    ),
}  # fmt: skip


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    arguments.add_argument("--data-dir", type=Path)
    chosen = arguments.parse_args()
    if chosen.clock == "cpu":
        time.perf_counter = time.process_time

    from skeletal.harness.config import Pruning, Setup, Training, resolve
    from skeletal.harness.runs.estimate import estimate
    from skeletal.harness.runs.experiment import run

    print(markdown_head(["setting", "pruning, s", "training, s", "disk, MB"], left=4))
    for name, (network, prune, train) in SETTINGS.items():
        setup = Setup(device="cpu", data_dir=chosen.data_dir, **network)
        pruning, training = resolve(Pruning(**prune), "quick"), resolve(Training(**train), "quick")
        found = estimate(setup, pruning, training)
        with tempfile.TemporaryDirectory() as root:
            folder, result = run(setup, pruning, training, root=Path(root), progress=False)
            disk = sum(file.stat().st_size for file in folder.path.rglob("*") if file.is_file())
        pairs = (
            (found.prune_seconds, result["prune_seconds"]),
            (found.train_seconds, result["seconds"]),
            (found.disk / 1e6, disk / 1e6),
        )
        print(markdown_row([name, *(f"{said:.2f} said, {was:.2f} was" for said, was in pairs)]), flush=True)


if __name__ == "__main__":
    main()
