"""`skeletal estimate`: what a run will cost, before it starts."""

from skeletal.cli.settings import Flag, PruningFlags, SetupFlags, TrainingFlags, print_json, resolved
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
        defaults of cifar10, cifar100, tiny-imagenet, imagenet or quick
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
    rows = {
        "data": _duration(found.data_seconds),
        "pruning": f"{_duration(found.prune_seconds)}  ({pruning.steps} steps of {pruning.batches_per_step} batches)",
        "training": f"{_duration(found.train_seconds)}  ({each})",
        "memory": f"{_size(found.memory)} at the peak",
        "disk": f"{_size(found.disk)} for the run folder",
    }
    for name, text in rows.items():
        print(f"  {name:9} {text}")
    print("assumed: " + "; ".join(found.assumed))


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    if hours >= 48:
        return f"{hours / 24:.1f} days"
    if hours:
        return f"{hours} h {rest // 60} min"
    return f"{seconds:.1f} s" if seconds < 100 else f"{rest // 60} min {rest % 60} s"


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
