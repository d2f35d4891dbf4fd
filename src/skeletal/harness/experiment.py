"""The main job: find a mask at initialization, train the skeleton, test it, leave a run folder behind."""

import shlex
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from skeletal.core.choices import require
from skeletal.core.diagnose import Diagnosis, diagnose
from skeletal.core.mask import Mask
from skeletal.core.prune import METHODS, Step, prune
from skeletal.core.repair import repair
from skeletal.harness import checkpoint, models
from skeletal.harness import data as data_sets
from skeletal.harness.codes import LOSSES
from skeletal.harness.config import Pruning, Setup, Training
from skeletal.harness.data import Data
from skeletal.harness.devices import pick_device
from skeletal.harness.engines import ENGINES, engine_for
from skeletal.harness.evaluate import Scores, evaluate
from skeletal.harness.folders import RunFolder
from skeletal.harness.train import steps_per_epoch, train

DENSE = "dense"
MASK = "mask.safetensors"

# Where things lie, what computes them and whose word the settings are do not make a run another one.
_NOT_IDENTITY = ("data_dir", "device", "workers", "engine", "sparsity", "as_in")


def load_data(setup: Setup) -> Data:
    """The data set of a setup, its validation split drawn by the setup's seed."""
    return data_sets.load(setup.data, setup.data_dir, seed=setup.seed, workers=setup.workers)


def create_model(setup: Setup, data: Data | data_sets.Spec) -> nn.Module:
    """The network of a setup at its initialization, fitted to the data set's classes, channels and size."""
    return models.create(
        setup.model,
        num_classes=data.num_classes,
        in_channels=data.channels,
        image_size=data.image_size,
        seed=setup.seed,
    )


def find_mask(model: nn.Module, data: Data, setup: Setup, pruning: Pruning, *, progress: bool = True) -> Mask:
    """Prune a network at initialization on a data set's training images, augmented as in training.

    Args:
        model: at its initialization; moved to the setup's device.
        data: its training split is streamed, never the validation or test split.
        setup: for seed and device.
        pruning: resolved, no field `None` except `sparsity`.
        progress: show a bar on stderr.

    Raises:
        ValueError: the method is unknown, or dense, which has no mask; and what `prune` raises.

    """
    if pruning.method == DENSE:
        raise ValueError("the method dense has no mask: there is nothing to prune; train it with `skeletal train`")
    assert pruning.density is not None and pruning.batches_per_step and pruning.prune_batch_size, "not resolved"
    assert pruning.loss and pruning.average and pruning.bn_mode, "not resolved"
    model.to(pick_device(setup.device))
    with _step_bar(pruning.method, progress) as on_step:
        mask = prune(
            model,
            pruning_batches(data, setup, pruning),
            density=pruning.density,
            method=pruning.method,
            steps=pruning.steps,
            schedule=pruning.schedule,
            batches_per_step=pruning.batches_per_step,
            loss=LOSSES[pruning.loss],
            average=pruning.average,
            bn_mode=pruning.bn_mode,
            precision=pruning.precision,
            engine=pruning.scoring_engine,
            on_collapse=pruning.on_collapse,
            seed=setup.seed,
            on_step=on_step,
        )
    mask.metadata |= {"network": setup.model, "data": data.name}
    mask.metadata |= {
        "prune_batch_size": pruning.prune_batch_size,
        "sampling": pruning.sampling,
        "as_in": pruning.as_in,
    }
    return mask


def pruning_batches(data: Data, setup: Setup, pruning: Pruning) -> Iterable[data_sets.Batch]:
    """What a mask is found on: training images without end, plain or class-balanced batches."""
    size = pruning.prune_batch_size or 0
    if pruning.sampling == "balanced":
        return data_sets.BalancedStream(data.train, size, setup.seed, data.num_classes)
    return data_sets.Stream(data.train, size, setup.seed)


def run(
    setup: Setup, pruning: Pruning, training: Training, *, root: Path, name: str | None = None, progress: bool = True
) -> tuple[RunFolder, dict[str, Any]]:
    """Prune, train and test; the same settings find the same folder, so a killed run goes on.

    A finished run is not repeated: its result is returned. All three records have to be resolved.

    Returns:
        The run's folder and what is in its `result.json`.

    """
    dense = pruning.method == DENSE
    require("method", pruning.method, [*METHODS, DENSE])
    method = [DENSE] if dense else [pruning.method, f"{pruning.density:g}"]
    config = identity(setup, training) | ({"method": DENSE} if dense else identity(pruning))
    place = (root, name or _name(setup, *method), config)
    folder = RunFolder.find(*place)
    if folder.finished:
        return folder, folder.result()
    data, model = _prepare(setup, training)
    mask = None if dense else _mask_of(folder, model, data, setup, pruning, progress)
    folder = RunFolder.open(*place)  # only now: what is wrong with the settings has shown itself
    return folder, _train(folder, model, data, setup, training, mask, progress)


def train_masked(
    setup: Setup, training: Training, mask_path: Path | None, *, root: Path, progress: bool = True
) -> tuple[RunFolder, dict[str, Any]]:
    """Train and test with a mask from a file, or dense with None; otherwise as `run`.

    Warns:
        UserWarning: the mask was found on another network or seed than this setup's.

    """
    mask = None if mask_path is None else Mask.load(mask_path)
    method = [DENSE] if mask is None else [_method(mask), f"{mask.density:.4g}"]
    config = identity(setup, training) | {"mask": None if mask is None else mask.digest}
    place = (root, _name(setup, *method), config)
    folder = RunFolder.find(*place)
    if folder.finished:
        return folder, folder.result()
    data, model = _prepare(setup, training)
    if mask is not None:
        for what, ours in (("network", setup.model), ("seed", setup.seed)):
            theirs = mask.metadata.get(what, ours)
            if theirs != ours:
                warnings.warn(f"the mask was found with {what} {theirs}, this run has {ours}", stacklevel=2)
        mask.attach(model).detach()  # refuses another network's mask before there is a folder
    folder = RunFolder.open(*place)
    return folder, _train(folder, model, data, setup, training, mask, progress)


def evaluate_run(
    path: Path, *, split: str = "test", data_dir: Path | None = None, device: str = "auto", engine: str = "auto"
) -> Scores:
    """Score the trained network of a run folder again, after making sure that it is as sparse as its mask.

    Args:
        path: a run folder with `model.safetensors`.
        split: "train" (as the images are, without augmentation), "validation" or "test".
        data_dir: where the data set lies.
        device: see `Setup`.
        engine: see `Training`; "auto" scores with what the run was trained by, for the same scores to the last digit.

    Raises:
        FileNotFoundError: no run there, or it has not finished training.
        MaskError: a pruned weight is not zero.

    """
    require("engine", engine, ENGINES)
    config = RunFolder.at(path).config
    weights = path / "model.safetensors"
    if not weights.is_file():
        raise FileNotFoundError(f"{path} has no model.safetensors: its training has not finished")
    setup = Setup(model=config["model"], data=config["data"], seed=config["seed"], data_dir=data_dir, device=device)
    data = load_data(setup)
    model = create_model(setup, data)
    try:
        model.load_state_dict(load_file(weights))
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"{weights} is damaged, or not of {setup.model}: {error}") from error
    mask = Mask.load(path / MASK) if (path / MASK).exists() else None
    if mask is not None:
        mask.check(model)
    part = {"train": data.train, "validation": data.validation, "test": data.test}[split]
    batches = part.batches(config["batch_size"], train=False)  # as in training, so that the scores are the same
    options = {name: config[name] for name in ("bf16", "channels_last")}
    place = pick_device(device)
    network = engine_for(
        model.to(place),
        mask,
        engine,
        device=place,
        example=lambda: next(iter(batches))[0],
        autocast=lambda: torch.autocast(place.type, torch.bfloat16, enabled=config["bf16"]),
        earlier=_trained_by(path) if engine == "auto" and place.type == "cpu" else None,
    ).network
    return evaluate(network, batches, device=place, **options)


def _trained_by(path: Path) -> dict[str, Any] | None:
    state = checkpoint.load(path)
    return None if state is None else checkpoint.engine_of(state)


def diagnose_mask(
    path: Path, *, model: str | None = None, data: str | None = None, data_dir: Path | None = None, repaired: int = 0
) -> tuple[Mask, Diagnosis]:
    """The mask of a file or a run folder, repaired if asked for, and what it leaves of its network.

    Args:
        path: a mask file or a run folder.
        model: the network; by default the one the mask was found on, as its metadata says.
        data: the data set, for classes and image size; by default likewise.
        data_dir: where it lies; only image folders are looked at.
        repaired: give every layer at least so many weights first (see `repair`); 0 leaves the mask as it is.

    Raises:
        ValueError: the mask does not know its network or data set, and none was given.

    """
    mask = Mask.load(path / MASK if path.is_dir() else path)
    model = model or mask.metadata.get("network")
    data = data or mask.metadata.get("data")
    if not model or not data:
        raise ValueError(f"{path} does not tell its network and data set: say --model and --data")
    setup = Setup(model=model, data=data, data_dir=data_dir, seed=mask.metadata.get("seed", 0))
    shapes = data_sets.SPECS.get(setup.data) or load_data(setup)
    network = create_model(setup, shapes)
    if repaired:
        mask = repair(mask, network, repaired)
    return mask, diagnose(network, mask, torch.zeros(2, shapes.channels, shapes.image_size, shapes.image_size))


def identity(*records: Setup | Pruning | Training) -> dict[str, Any]:
    """The settings that make a run what it is."""
    merged: dict[str, Any] = {}
    for record in records:
        merged |= {key: value for key, value in asdict(record).items() if key not in _NOT_IDENTITY}
    return merged


def _name(setup: Setup, *method: str) -> str:
    return "-".join([setup.model.replace(":", "-"), Path(setup.data).name, *method])


def _method(mask: Mask) -> str:
    return mask.metadata.get("method", "mask")


def _prepare(setup: Setup, training: Training) -> tuple[Data, nn.Module]:
    """Data and network; whatever is wrong with the settings is refused here, before hours of pruning."""
    pick_device(setup.device)
    data = load_data(setup)
    steps_per_epoch(training, data)
    return data, create_model(setup, data)


def _mask_of(folder: RunFolder, model: nn.Module, data: Data, setup: Setup, pruning: Pruning, progress: bool) -> Mask:
    """The mask of an interrupted run, or a new one."""
    path = folder.path / MASK
    if path.exists():
        return Mask.load(path)
    start = time.perf_counter()
    mask = find_mask(model, data, setup, pruning, progress=progress)
    mask.metadata["prune_seconds"] = round(time.perf_counter() - start, 3)
    return mask


def _train(
    folder: RunFolder,
    model: nn.Module,
    data: Data,
    setup: Setup,
    training: Training,
    mask: Mask | None,
    progress: bool,
) -> dict[str, Any]:
    if mask is not None and not (folder.path / MASK).exists():
        mask.save(folder.path / MASK)
    trained = train(
        model,
        data,
        training,
        mask=mask,
        folder=folder,
        seed=setup.seed,
        device=setup.device,
        resume_command="skeletal " + shlex.join(sys.argv[1:]),
        progress=progress,
    )
    result: dict[str, Any] = {"model": setup.model, "data": data.name, "seed": setup.seed}
    if mask is None:
        result |= {"method": DENSE, "density": 1.0}
    else:
        result |= {
            "method": _method(mask),
            "density": mask.density,
            "kept": mask.kept,
            "prunable": mask.total,
            "densities": mask.densities(),
            "empty_layers": mask.empty_layers,
            "connected": mask.metadata.get("connected"),
            "prune_seconds": mask.metadata.get("prune_seconds"),
        }
    result |= asdict(trained)
    folder.finish(result)
    return result


@contextmanager
def _step_bar(method: str, shown: bool) -> Iterator[Any]:
    """A bar over pruning steps, on stderr; hands out the `on_step` that moves it."""
    console = Console(stderr=True)
    columns = (TextColumn(f"pruning, {method}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not shown or not console.is_terminal) as bar:
        task = bar.add_task("", total=None)

        def on_step(step: Step) -> None:
            bar.update(task, completed=step.step, total=step.steps)

        yield on_step
