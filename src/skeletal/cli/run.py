"""`skeletal run`, `prune` and `train`."""

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

from skeletal.cli import config_file
from skeletal.cli.settings import (
    Flag,
    PruningFlags,
    SetupFlags,
    SlurmFlags,
    TrainingFlags,
    check_files,
    print_json,
    resolved,
    summary,
)
from skeletal.cli.settings import print_config as print_settings
from skeletal.core.launcher import launched
from skeletal.core.progress import say
from skeletal.harness.config import HELD_OUT, Pruning, Setup, Training, resolve
from skeletal.harness.limits import check


def run(
    setup: SetupFlags = Setup(),
    pruning: PruningFlags = Pruning(),
    training: TrainingFlags = Training(),
    *,
    preset: str = "quick",
    out: Path = Path("runs"),
    name: str | None = None,
    seeds: int = 1,
    wait: Flag = False,
    executor: Literal["none", "local", "slurm"] = "none",
    slurm: SlurmFlags = None,
    print_config: Flag = False,
    json: Flag = False,
) -> None:
    """Prune at initialization, train, test, and keep everything in a run folder.

    The same settings find the same folder: a finished run is not repeated, an interrupted one resumes.

    For example:

        skeletal run --density 0.02
        skeletal run --model vgg19-cifar --data cifar10 --data-dir D --method force --density 0.01 --preset cifar10
        skeletal run --density 0.02 --seeds 3
        skeletal run --print-config > my.toml; skeletal run --config my.toml --seed 1

    Parameters
    ----------
    preset
        defaults of cifar10, cifar10-short, cifar100, tiny-imagenet, imagenet, quick
    out
        folder for run folders
    name
        name of the run folder, instead of model-data-method-density; a hash of the settings is appended
    seeds
        number of seeds, from --seed on; prints mean accuracy and deviation
    wait
        wait for another process that works on the same run, instead of failing; with --executor none
    executor
        none: in this process; local: in a process of its own; slurm: submit it; it resumes when preempted
    slurm
        sbatch options, such as --slurm.partition P --slurm.time 720 (minutes) --slurm.gpus-per-node 1
    print_config
        print the settings as TOML and stop
    json
        print the result as JSON on stdout

    """
    if print_config:
        return print_settings(preset, setup, pruning, training)
    setup, pruning, training = resolved(preset, setup, pruning, training)
    if seeds < 1:
        raise ValueError(f"--seeds is the number of runs and has to be at least 1, not {seeds}")
    if wait and executor != "none":
        raise ValueError(f"--executor {executor} passes over what another process works on: leave --wait out")
    if executor != "none" and launched() > 1:
        raise ValueError(
            f"--executor {executor} starts processes of its own, and this is one of {launched()} that were launched"
            " together: leave one of the two out"
        )
    from skeletal.harness.console.trackers import log_finished

    setups = [replace(setup, seed=setup.seed + k) for k in range(seeds)]
    check(setups[-1])
    if executor != "none" or slurm:
        from skeletal.harness.runs.finding import refuse_unlike
        from skeletal.study.dispatch.launch import launch_one, refuse_slurm
        from skeletal.study.paper.jobs import Job

        refuse_slurm(slurm, executor)
        jobs = [Job(each, pruning, training, name) for each in setups]
        refuse_unlike(setup, *(job.folder(out) for job in jobs))
        ids = [i for job in jobs for i in launch_one(job, out, executor=executor, slurm=slurm or {})]
        if ids:
            return print_json({"submitted": ids}) if json else print(f"submitted to Slurm: {', '.join(ids)}")
        folders = [job.folder(out) for job in jobs]
        for folder in folders:
            log_finished(folder, training)
        return _report([(folder.path, folder.result()) for folder in folders], json)
    from skeletal.harness.runs import experiment

    options = {"root": out, "name": name, "wait": wait, "resume_command": _this_command()}
    done = [experiment.run(each, pruning, training, **options) for each in setups]
    for folder, _ in done:
        log_finished(folder, training)
    _report([(folder.path, result) for folder, result in done], json)


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
    """Find a mask at initialization, show what it keeps in each layer, and save it.

    For example:

        skeletal prune --model vgg19-cifar --data cifar10 --data-dir D --density 0.01 --steps 60 --out force.safetensors
        skeletal prune --method snip --batches-per-step 60 --density 0.005 --out snip-mb.safetensors
        skeletal prune --method force-regrow --as-in force-code --out as-the-official-code.safetensors

    Parameters
    ----------
    preset
        defaults of cifar10, cifar10-short, cifar100, tiny-imagenet, imagenet, quick
    out
        mask file to write
    overwrite
        replace an existing file
    print_config
        print the settings as TOML and stop
    json
        print the densities as JSON on stdout

    """
    if print_config:
        return print_settings(preset, setup, pruning)
    setup, pruning = resolved(preset, setup, pruning)
    if out.is_dir():
        raise ValueError(f"{out} is a folder: give --out a file, such as {out / 'mask.safetensors'}")
    if not out.parent.is_dir():
        raise ValueError(f"the folder of {out} does not exist: create it first, or choose another --out")
    from skeletal.core.model.distributed import on_first
    from skeletal.harness.runs.finding import create_model, find_mask, load_data

    on_first(lambda: check_files(out, overwrite=overwrite))
    data = load_data(setup)
    mask = find_mask(create_model(setup, data), data, setup, pruning)
    on_first(lambda: mask.save(out))
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
    wait: Flag = False,
    print_config: Flag = False,
    json: Flag = False,
) -> None:
    """Train and test with a mask from a file, or dense without one.

    Network, data and seed are those the mask was found with, unless you name others.

    For example:

        skeletal train --mask force.safetensors --data-dir D --preset cifar10
        skeletal train --model resnet20-cifar --data fashion-mnist --epochs 5

    Parameters
    ----------
    mask
        mask file of `skeletal prune`, or a run folder; without one, train the dense network
    preset
        defaults of cifar10, cifar10-short, cifar100, tiny-imagenet, imagenet, quick
    out
        folder for run folders
    wait
        wait for another process that works on the same run, instead of failing
    print_config
        print the settings as TOML and stop
    json
        print the result as JSON on stdout

    """
    if print_config:
        return print_settings(preset, setup, training)
    if mask is not None:
        setup = _as_the_mask_was_found(mask, setup, preset)
    setup, training = resolved(preset, setup, training)
    from skeletal.harness.console.trackers import log_finished
    from skeletal.harness.runs import experiment

    folder, result = experiment.train_masked(setup, training, mask, root=out, wait=wait, resume_command=_this_command())
    log_finished(folder, training)
    _report([(folder.path, result)], json)


def _this_command() -> str:
    from skeletal.harness.training.processes import launcher

    return launcher() + shlex.join(sys.argv[1:])


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


_OF_THE_MASK = (
    ("model", "network"), ("data", "data"), ("image_size", "image_size"), ("validation", "validation"),
    ("seed", "seed"),
)  # fmt: skip


def _as_the_mask_was_found(path: Path, setup: Setup, preset: str) -> Setup:
    """The setup, with a mask's network, data and seed where none was asked for; tells what it took."""
    from skeletal.core.masks.mask import Mask
    from skeletal.harness.store.folders import mask_file

    about = Mask.load(mask_file(path)).metadata
    if "network" in about:  # found by a command of ours, which notes only what is not the default
        about = {"validation": HELD_OUT} | about
    taken: dict[str, Any] = {}
    asked = resolve(setup, preset)
    for name, key in _OF_THE_MASK:
        if _option(name) not in config_file.said and about.get(key) not in (None, getattr(asked, name)):
            taken[name] = about[key]
    if taken:
        say(f"as the mask was found: {' '.join(f'{_option(name)} {value}' for name, value in taken.items())}")
    return replace(setup, **taken)


def _report(done: list[tuple[Path, dict]], json: bool) -> None:
    """The result of one run, or of several that differ in the seed."""
    if len(done) == 1:
        ((path, result),) = done
        return print_json({"folder": path, **result}) if json else print(f"{summary(result)}\nrun folder: {path}")
    top1 = [result["test"]["top1"] for _, result in done]
    mean, deviation = fmean(top1), stdev(top1)
    if json:
        runs = [{"folder": path, **result} for path, result in done]
        return print_json({"runs": runs, "test_top1": {"mean": mean, "deviation": deviation}})
    print(summary(done[0][1]).splitlines()[0])
    for path, result in done:
        print(f"seed {result['seed']}: test top-1 {result['test']['top1']:.2f}%  {result['seconds']:.1f} s  {path}")
    print(f"test top-1 {mean:.2f} ± {deviation:.2f}% (mean and standard deviation of {len(done)} seeds)")
