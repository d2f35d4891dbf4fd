"""The main job: find a mask at initialization, train the skeleton, test it, leave a run folder behind."""

import shlex
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
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
from skeletal.core.distributed import on_first, rank, ranks, together
from skeletal.core.mask import Mask
from skeletal.core.prune import METHODS, Step, prune
from skeletal.core.repair import repair
from skeletal.core.schedules import Schedule
from skeletal.harness import checkpoint, models
from skeletal.harness import data as data_sets
from skeletal.harness.codes import LOSSES
from skeletal.harness.config import Pruning, Setup, Training
from skeletal.harness.data import Data
from skeletal.harness.devices import pick_device
from skeletal.harness.engines import ENGINES, engine_for_all
from skeletal.harness.evaluate import Scores, evaluate
from skeletal.harness.folders import RunFolder
from skeletal.harness.processes import launcher
from skeletal.harness.train import steps_per_epoch, train

DENSE = "dense"
MASK = "mask.safetensors"

# Where things lie, what computes them and whose word the settings are do not make a run another one.
_NOT_IDENTITY = ("data_dir", "device", "workers", "engine", "tensorboard", "sparsity", "as_in")
# Settings that came later are left out while they change nothing, so that earlier runs keep their folders.
_LATER = {"micro_batch": None, "sync_bn": False, "skip_corrupt": False}


def load_data(setup: Setup) -> Data:
    """The data set of a setup, its validation split drawn by the setup's seed."""
    options = {"workers": setup.workers, "skip_corrupt": setup.skip_corrupt}
    return data_sets.load(setup.data, setup.data_dir, seed=setup.seed, **options)


def create_model(setup: Setup, data: Data | data_sets.Spec) -> nn.Module:
    """The network of a setup at its initialization, fitted to the data set's classes, channels and size."""
    return models.create(
        setup.model,
        num_classes=data.num_classes,
        in_channels=data.channels,
        image_size=data.image_size,
        seed=setup.seed,
    )


def find_mask(
    model: nn.Module,
    data: Data,
    setup: Setup,
    pruning: Pruning,
    *,
    progress: bool = True,
    schedule: Schedule | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> Mask:
    """Prune a network at initialization on a data set's training images, augmented as in training.

    Args:
        model: at its initialization; moved to the setup's device.
        data: its training split is streamed, never the validation or test split.
        setup: for seed and device.
        pruning: resolved, no field `None` except `sparsity`.
        progress: show a bar on stderr.
        schedule: a function of the caller's own in place of the settings' schedule.
        on_step: see `prune`.

    Raises:
        ValueError: the method is unknown, or dense, which has no mask; and what `prune` raises.

    """
    if pruning.method == DENSE:
        raise ValueError("the method dense has no mask: there is nothing to prune; train it with `skeletal train`")
    assert pruning.density is not None and pruning.batches_per_step and pruning.prune_batch_size, "not resolved"
    assert pruning.loss and pruning.average and pruning.bn_mode, "not resolved"
    model.to(pick_device(setup.device))
    with _step_bar(pruning.method, progress and rank() == 0, on_step) as step:
        mask = prune(
            model,
            pruning_batches(data, setup, pruning),
            density=pruning.density,
            method=pruning.method,
            steps=pruning.steps,
            schedule=schedule or pruning.schedule,
            batches_per_step=pruning.batches_per_step,
            loss=LOSSES[pruning.loss],
            average=pruning.average,
            bn_mode=pruning.bn_mode,
            precision=pruning.precision,
            engine=pruning.scoring_engine,
            micro_batch=pruning.micro_batch,
            on_collapse=pruning.on_collapse,
            seed=setup.seed,
            on_step=step,
        )
    mask.metadata |= {"network": setup.model, "data": data.name}
    mask.metadata |= {
        "prune_batch_size": pruning.prune_batch_size,
        "sampling": pruning.sampling,
        "as_in": pruning.as_in,
    }
    return mask


def pruning_batches(data: Data, setup: Setup, pruning: Pruning) -> Iterable[data_sets.Batch]:
    """What a mask is found on: training images without end, in plain or class-balanced batches; a rank has its part."""
    size = pruning.prune_batch_size or 0
    split = data_sets.resident(data.train, pick_device(setup.device))
    if pruning.sampling == "balanced":
        share = data_sets.Share(rank(), ranks())
        return data_sets.BalancedStream(split, size, setup.seed, data.num_classes, share)
    return data_sets.Stream(data_sets.shared(split), size, setup.seed)


def _place(
    setup: Setup, pruning: Pruning, training: Training, root: Path, name: str | None
) -> tuple[Path, str, dict[str, Any]]:
    dense = pruning.method == DENSE
    require("method", pruning.method, [*METHODS, DENSE])
    method = [DENSE] if dense else [pruning.method, f"{pruning.density:g}"]
    config = identity(setup, training) | ({"method": DENSE} if dense else identity(pruning))
    return root, name or run_name(setup, *method), config


def run_folder(setup: Setup, pruning: Pruning, training: Training, *, root: Path, name: str | None = None) -> RunFolder:
    """Where `run` leaves, or would leave, what it finds with these settings; creates nothing."""
    return RunFolder.find(*_place(setup, pruning, training, root, name))


@contextmanager
def _claimed(folder: RunFolder, wait: bool) -> Iterator[None]:
    """Rank 0 claims the run for all ranks."""
    with ExitStack() as held:
        on_first(lambda: held.enter_context(folder.claim(wait=wait)))
        yield


@together()
def run(
    setup: Setup,
    pruning: Pruning,
    training: Training,
    *,
    root: Path,
    name: str | None = None,
    wait: bool = False,
    progress: bool = True,
) -> tuple[RunFolder, dict[str, Any]]:
    """Prune, train and test; the same settings find the same folder, so a killed run goes on.

    A finished run is not repeated: its result is returned. All three records have to be resolved.

    Args:
        setup: network, data, seed and device.
        pruning: how the mask is found.
        training: how the skeleton is trained.
        root: the folder of run folders.
        name: of the run folder, which a hash of the settings follows.
        wait: for a process that is at work on the same run, in place of an error.
        progress: show bars on stderr.

    In a process group (torchrun) all ranks call it; they work as one, with batches divided among them (see `train`),
    and rank 0 writes the folder, which all have to see.

    Returns:
        The run's folder and what is in its `result.json`.

    Raises:
        BusyError: another process is at work on the same run.
        PeerError: another rank has failed.

    """
    place = _place(setup, pruning, training, root, name)
    folder = RunFolder.find(*place)
    if on_first(lambda: folder.finished):
        return folder, folder.result()
    with _claimed(folder, wait):
        if on_first(lambda: folder.finished):  # by the process we have waited for
            return folder, folder.result()
        data, model = _prepare(setup, training)
        dense = pruning.method == DENSE
        mask = None if dense else _mask_of(folder, model, data, setup, pruning, progress)
        _open(*place)  # only now: what is wrong with the settings has shown itself
        return folder, _train(folder, model, data, setup, training, mask, progress)


def _masked_place(setup: Setup, training: Training, mask: Mask | None, root: Path) -> tuple[Path, str, dict[str, Any]]:
    method = [DENSE] if mask is None else [_method(mask), f"{mask.density:.4g}"]
    config = identity(setup, training) | {"mask": None if mask is None else mask.digest}
    return root, run_name(setup, *method), config


def masked_folder(setup: Setup, training: Training, mask_path: Path | None, *, root: Path) -> RunFolder:
    """Where `train_masked` leaves, or would leave, what it finds with these settings; creates nothing."""
    mask = None if mask_path is None else Mask.load(mask_path)
    return RunFolder.find(*_masked_place(setup, training, mask, root))


@together()
def train_masked(
    setup: Setup,
    training: Training,
    mask_path: Path | None,
    *,
    root: Path,
    wait: bool = False,
    progress: bool = True,
) -> tuple[RunFolder, dict[str, Any]]:
    """Train and test with a mask from a file, or dense with None; otherwise as `run`.

    Warns:
        UserWarning: the mask was found on another network or seed than this setup's.

    """
    mask = None if mask_path is None else Mask.load(mask_path)
    place = _masked_place(setup, training, mask, root)
    folder = RunFolder.find(*place)
    if on_first(lambda: folder.finished):
        return folder, folder.result()
    with _claimed(folder, wait):
        if on_first(lambda: folder.finished):
            return folder, folder.result()
        data, model = _prepare(setup, training)
        if mask is not None:
            for what, ours in (("network", setup.model), ("seed", setup.seed)):
                theirs = mask.metadata.get(what, ours)
                if theirs != ours:
                    warnings.warn(f"the mask was found with {what} {theirs}, this run has {ours}", stacklevel=3)
            mask.attach(model).detach()  # refuses another network's mask before there is a folder
        _open(*place)
        return folder, _train(folder, model, data, setup, training, mask, progress)


@together()
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
    place = pick_device(device)
    here = data_sets.shared(data_sets.resident(part, place))
    batches = here.batches(config["batch_size"], train=False)  # as in training, so that the scores are the same
    options = {name: config[name] for name in ("bf16", "channels_last")}
    network = engine_for_all(
        model.to(place),
        mask,
        engine,
        device=place,
        example=lambda: next(iter(batches))[0],
        autocast=lambda: torch.autocast(place.type, torch.bfloat16, enabled=config["bf16"]),
        earlier=_trained_by(path) if engine == "auto" and place.type == "cpu" else None,
    ).network
    return evaluate(network, batches, device=place, shared=True, **options)


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
        known = {key: value for key, value in asdict(record).items() if key not in _NOT_IDENTITY}
        merged |= {key: value for key, value in known.items() if key not in _LATER or value != _LATER[key]}
    return merged


def run_name(setup: Setup, *method: str) -> str:
    """What a run folder is called, before the hash: network, data set, method and density."""
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
    if on_first(path.exists):
        return Mask.load(path)
    start = time.perf_counter()
    mask = find_mask(model, data, setup, pruning, progress=progress)
    mask.metadata["prune_seconds"] = round(time.perf_counter() - start, 3)
    return mask


def _open(root: Path, name: str, config: dict[str, Any]) -> None:
    on_first(lambda: RunFolder.open(root, name, config) and None)


def _train(
    folder: RunFolder,
    model: nn.Module,
    data: Data,
    setup: Setup,
    training: Training,
    mask: Mask | None,
    progress: bool,
) -> dict[str, Any]:
    def leave_mask() -> None:
        if mask is not None and not (folder.path / MASK).exists():
            mask.save(folder.path / MASK)

    on_first(leave_mask)
    trained = train(
        model,
        data,
        training,
        mask=mask,
        folder=folder,
        seed=setup.seed,
        device=setup.device,
        resume_command=launcher() + shlex.join(sys.argv[1:]),
        progress=progress,
    )
    result = describe(setup, data, mask) | asdict(trained)
    on_first(partial(folder.finish, result))
    return result


def describe(setup: Setup, data: Data, mask: Mask | None) -> dict[str, Any]:
    """What every `result.json` begins with: what was run, and what the mask leaves; None is the dense network."""
    about = {"model": setup.model, "data": data.name, "seed": setup.seed}
    if mask is None:
        return about | {"method": DENSE, "density": 1.0}
    return about | {
        "method": _method(mask),
        "density": mask.density,
        "kept": mask.kept,
        "prunable": mask.total,
        "densities": mask.densities(),
        "empty_layers": mask.empty_layers,
        "connected": mask.metadata.get("connected"),
        "prune_seconds": mask.metadata.get("prune_seconds"),
    }


@contextmanager
def _step_bar(method: str, shown: bool, then: Callable[[Step], None] | None) -> Iterator[Any]:
    """A bar over pruning steps, on stderr; hands out the `on_step` that moves it, and calls the caller's own."""
    console = Console(stderr=True)
    columns = (TextColumn(f"pruning, {method}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not shown or not console.is_terminal) as bar:
        task = bar.add_task("", total=None)

        def on_step(step: Step) -> None:
            bar.update(task, completed=step.step, total=step.steps)
            if then is not None:
                then(step)

        yield on_step
