"""`skeletal run`, `prune` and `train`."""

from pathlib import Path

from skeletal.cli.settings import (
    Flag,
    PruningFlags,
    SetupFlags,
    TrainingFlags,
    print_json,
    resolved,
    summary,
)
from skeletal.cli.settings import print_config as print_settings
from skeletal.harness.config import Pruning, Setup, Training


def run(
    setup: SetupFlags = Setup(),
    pruning: PruningFlags = Pruning(),
    training: TrainingFlags = Training(),
    *,
    preset: str = "quick",
    out: Path = Path("runs"),
    name: str | None = None,
    print_config: Flag = False,
    json: Flag = False,
) -> None:
    """Prune at initialization, train the skeleton, test it; leave a run folder behind.

    The same settings find the same folder: a finished run is not repeated, an interrupted one goes on.

    For example:

        skeletal run --density 0.02

        skeletal run --model vgg19-cifar --data cifar10 --data-dir D --method force --density 0.01 --preset cifar10

        skeletal run --print-config > my.toml; skeletal run --config my.toml --seed 1

    Parameters
    ----------
    preset
        settings of the paper, for what is not given: cifar10, cifar100, tiny-imagenet, imagenet; or quick
    out
        folder of run folders
    name
        name of the run folder, in place of model-data-method-density; a hash of the settings follows it
    print_config
        print the settings as TOML and stop
    json
        print the result as JSON on stdout

    """
    if print_config:
        return print_settings(preset, setup, pruning, training)
    pruning, training = resolved(preset, pruning, training)
    from skeletal.harness import experiment

    folder, result = experiment.run(setup, pruning, training, root=out, name=name, progress=not json)
    _report(folder.path, result, json)


def prune(
    setup: SetupFlags = Setup(),
    pruning: PruningFlags = Pruning(),
    *,
    preset: str = "quick",
    out: Path = Path("mask.safetensors"),
    overwrite: Flag = False,
    print_config: Flag = False,
    json: Flag = False,
) -> None:
    """Find a mask at initialization and save it, with a table of what is left in each layer.

    For example:

        skeletal prune --model vgg19-cifar --data cifar10 --data-dir D --density 0.01 --steps 60 --out force.safetensors

        skeletal prune --method snip --batches-per-step 60 --density 0.005 --out snip-mb.safetensors

        skeletal prune --method force-regrow --as-in force-code --out as-the-official-code.safetensors

    Parameters
    ----------
    preset
        settings of the paper, for what is not given: cifar10, cifar100, tiny-imagenet, imagenet; or quick
    out
        the mask file to write
    overwrite
        replace a file that is there
    print_config
        print the settings as TOML and stop
    json
        print the densities as JSON on stdout

    """
    if print_config:
        return print_settings(preset, setup, pruning)
    (pruning,) = resolved(preset, pruning)
    if out.exists() and not overwrite:
        raise ValueError(f"{out} is there already: choose another --out, or --overwrite")
    if not out.parent.is_dir():
        raise ValueError(f"the folder of {out} is not there: make it first, or choose another --out")
    from skeletal.harness import experiment

    data = experiment.load_data(setup)
    mask = experiment.find_mask(experiment.create_model(setup, data), data, setup, pruning, progress=not json)
    mask.save(out)
    if json:
        print_json({"out": out, "kept": mask.kept, "prunable": mask.total, "densities": mask.densities(),
                    "empty_layers": mask.empty_layers, **mask.metadata})  # fmt: skip
    else:
        print(mask)
        print(f"saved as {out}")


def train(
    setup: SetupFlags = Setup(),
    training: TrainingFlags = Training(),
    *,
    mask: Path | None = None,
    preset: str = "quick",
    out: Path = Path("runs"),
    print_config: Flag = False,
    json: Flag = False,
) -> None:
    """Train and test with a mask from a file, or dense without one; leave a run folder behind.

    Use the network and the seed the mask was found with: it was made for those initial weights.

    For example:

        skeletal train --mask force.safetensors --model vgg19-cifar --data cifar10 --data-dir D --preset cifar10

        skeletal train --model resnet20-cifar --data fashion-mnist --epochs 5

    Parameters
    ----------
    mask
        a mask file of `skeletal prune`; without it the dense network is trained
    preset
        settings of the paper, for what is not given: cifar10, cifar100, tiny-imagenet, imagenet; or quick
    out
        folder of run folders
    print_config
        print the settings as TOML and stop
    json
        print the result as JSON on stdout

    """
    if print_config:
        return print_settings(preset, setup, training)
    (training,) = resolved(preset, training)
    from skeletal.harness import experiment

    folder, result = experiment.train_masked(setup, training, mask, root=out, progress=not json)
    _report(folder.path, result, json)


def _report(path: Path, result: dict, json: bool) -> None:
    if json:
        print_json({"folder": path, **result})
    else:
        print(summary(result))
        print(f"run folder: {path}")
