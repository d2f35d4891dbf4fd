"""`skeletal estimate`: what a run will cost, before it starts."""

from skeletal.cli.settings import Flag, PruningFlags, SetupFlags, TrainingFlags, print_json, resolved
from skeletal.core.progress import duration
from skeletal.harness.config import Pruning, Setup, Training


def estimate(
    setup: SetupFlags = Setup(),
    pruning: PruningFlags = Pruning(),
    training: TrainingFlags = Training(),
    *,
    preset: str = "quick",
    json: Flag = False,
) -> None:
    """Estimate time, memory and disk of `skeletal run` with the same options.

    Runs a few steps of pruning and training on the real data and network, on this device, and extrapolates.

    For example:

        skeletal estimate --model vgg19-cifar --data cifar10 --data-dir D --density 0.01 --preset cifar10

    Parameters
    ----------
    preset
        defaults of cifar10, cifar10-short, cifar100, tiny-imagenet, imagenet, quick
    json
        print the figures as JSON on stdout

    """
    from dataclasses import asdict

    from skeletal.harness.runs import estimate as estimating

    setup, pruning, training = resolved(preset, setup, pruning, training)
    found = estimating.estimate(setup, pruning, training)
    if json:
        return print_json(asdict(found))
    epochs, steps = training.epochs or 0, found.steps_per_epoch
    print(f"{setup.model} on {setup.data}, {pruning.method}, on {found.device}, engine {found.engine}")
    each = f"{epochs} epoch{'s' if epochs != 1 else ''} of {steps} steps of {found.step_seconds:.3g} s"
    every = "" if pruning.method == "dense" else f"  ({pruning.steps} steps of {pruning.batches_per_step} batches)"
    rows = {
        "data": duration(found.data_seconds),
        "pruning": duration(found.prune_seconds) + every,
        "training": f"{duration(found.train_seconds)}  ({each})",
        "memory": f"{_size(found.memory)} at the peak",
        "disk": f"{_size(found.disk)} for the run folder",
    }
    for name, text in rows.items():
        print(f"  {name:9} {text}")
    print("assumed: " + "; ".join(found.assumed))


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
