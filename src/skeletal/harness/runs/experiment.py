"""The main job: find a mask at initialization, train the skeleton, test it, leave a run folder behind."""

import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from skeletal.core.choices import require
from skeletal.core.masks.mask import Mask
from skeletal.core.masks.match import matching_parameters
from skeletal.core.model.distributed import on_first, rank, together
from skeletal.core.model.weights import prunable_weights
from skeletal.core.progress import say, shown
from skeletal.core.pruning.methods import METHODS
from skeletal.core.pruning.prune import prune
from skeletal.core.updates.gradual import Gradual
from skeletal.harness.config import IMP, NOT_IDENTITY, Pruning, Setup, Training, without_later
from skeletal.harness.data import Data
from skeletal.harness.devices import pick_device
from skeletal.harness.ledger import Cost, Ledger
from skeletal.harness.output.bars import for_person
from skeletal.harness.runs.finding import DENSE, create_model, find_mask, fingerprint, load_data, refuse_unlike
from skeletal.harness.runs.rewinding import last_round, rewind_epoch
from skeletal.harness.store.folders import MASK, RunFolder, mask_file
from skeletal.harness.training.moving import rule_of
from skeletal.harness.training.task import Task, TrainResult, refuse_single_images, refuse_views
from skeletal.harness.training.train import steps_per_epoch, train


def _place(
    setup: Setup, pruning: Pruning, training: Training, root: Path | str, name: str | None
) -> tuple[Path, str, dict[str, Any]]:
    dense = pruning.method == DENSE
    require("method", pruning.method, [*METHODS, IMP, DENSE])
    if pruning.method == IMP and training.update != "none":
        raise ValueError(f"the method imp finds its mask by training; it does not go with --update {training.update}")
    if pruning.pattern is not None and training.update != "none":
        raise ValueError(
            f"--update {training.update} moves single weights, and would not keep --pattern {pruning.pattern}"
        )
    method = [DENSE] if dense else [pruning.method, f"{pruning.density:g}"]
    method = _named_after(method, training)
    if pruning.pattern is not None:
        method.insert(1, pruning.pattern.replace(":", "of"))
    config = identity(setup, training) | ({"method": DENSE} if dense else identity(pruning))
    return Path(root), name or run_name(setup, *method), config


def _named_after(method: list[str], training: Training) -> list[str]:
    """A run's method and density, as its folder is called: those that its mask ends with."""
    if training.update == "none":
        return method
    density = method[1:] if training.update_density is None else [f"{training.update_density:g}"]
    return [f"{method[0]}-{training.update}", *density]


def run_folder(
    setup: Setup, pruning: Pruning, training: Training, *, root: Path | str, name: str | None = None
) -> RunFolder:
    """Where `run` leaves, or would leave, what it finds with these settings; creates nothing."""
    return RunFolder.find(*_place(setup, pruning, training, root, name))


@together()
def run(
    setup: Setup,
    pruning: Pruning,
    training: Training,
    *,
    root: Path | str,
    name: str | None = None,
    wait: bool = False,
    progress: bool = True,
    resume_command: str | None = None,
) -> tuple[RunFolder, dict[str, Any]]:
    """Prune, train and test; the same settings find the same folder, so a killed run resumes.

    A finished run is not repeated: its result is returned. All three records must be resolved.

    Args:
        setup: network, data, seed and device.
        pruning: how the mask is found.
        training: how the skeleton is trained.
        root: the folder of run folders.
        name: of the run folder, which a hash of the settings follows.
        wait: for a process that is at work on the same run, instead of an error.
        progress: tell on stderr what is done and how far it is.
        resume_command: what to tell a person who interrupts the run to call.

    In a process group (torchrun) all ranks call it; they work as one, with batches divided among them (see `train`),
    and rank 0 writes the folder, which all have to see.

    Returns:
        The run's folder and what is in its `result.json`.

    Raises:
        ValueError: the folder's run is on other data of the same name, or of a network that has been rewritten.
        BusyError: another process is at work on the same run.
        PeerError: another rank has failed.

    """
    folder = run_folder(setup, pruning, training, root=root, name=name)

    def work() -> dict[str, Any]:
        records = setup, pruning, training
        task = begin(*records, root=root, name=name, progress=progress, resume_command=resume_command)
        return _train(task, setup, progress)

    with shown(progress and rank() == 0, for_person):
        on_first(partial(refuse_unlike, setup, folder))
        return folder, _once(folder, work, training, wait)


def begin(
    setup: Setup,
    pruning: Pruning,
    training: Training,
    *,
    root: Path | str,
    name: str | None,
    progress: bool,
    resume_command: str | None = None,
) -> Task:
    """Find the mask of a run that is claimed, and make its folder; what is left to be trained."""
    place = _place(setup, pruning, training, root, name)
    if pruning.method == IMP:
        rewind_epoch(pruning, training.epochs or 0)
    data, model = prepare(setup, training, 1.0 if pruning.method == DENSE else pruning.density or 1.0)
    RunFolder.find(*place).refuse_unlike(fingerprint(setup, data))
    if pruning.method == IMP:
        dense = replace(_opened(place, model, data, setup, training, None), resume_command=resume_command)
        return last_round(dense, pruning, progress=progress)
    if pruning.method != DENSE:
        mask = _mask_of(RunFolder.find(*place), model, data, setup, pruning, progress)
    else:
        mask = None if training.update == "none" else _of_all_weights(model, setup, data)
    return replace(_opened(place, model, data, setup, training, mask), resume_command=resume_command)


def _masked_place(
    setup: Setup, training: Training, mask: Mask | None, root: Path | str
) -> tuple[Path, str, dict[str, Any]]:
    method = [DENSE] if mask is None else [_method(mask), f"{mask.density:.4g}"]
    method = _named_after(method, training)
    config = identity(setup, training) | {"mask": None if mask is None else mask.digest}
    return Path(root), run_name(setup, *method), config


def masked_folder(setup: Setup, training: Training, mask_path: Path | None, *, root: Path) -> RunFolder:
    """Where `train_masked` leaves, or would leave, what it finds with these settings; creates nothing."""
    mask = None if mask_path is None else Mask.load(mask_file(mask_path))
    return RunFolder.find(*_masked_place(setup, training, mask, root))


@together()
def train_masked(
    setup: Setup,
    training: Training,
    mask_path: Path | str | None,
    *,
    root: Path | str,
    wait: bool = False,
    progress: bool = True,
    resume_command: str | None = None,
) -> tuple[RunFolder, dict[str, Any]]:
    """Train and test with a mask from a file or the folder of a run, or dense with None; otherwise as `run`.

    Warns:
        UserWarning: the mask was found on another network or seed than this setup's.

    """
    mask = None if mask_path is None else Mask.load(mask_file(mask_path))
    place = _masked_place(setup, training, mask, root)
    folder = RunFolder.find(*place)

    def work() -> dict[str, Any]:
        data, model = prepare(setup, training, 1.0 if mask is None else mask.density)
        folder.refuse_unlike(fingerprint(setup, data))
        if mask is not None:
            for what, ours in (("network", setup.model), ("seed", setup.seed)):
                theirs = mask.metadata.get(what, ours)
                if theirs != ours:
                    warnings.warn(f"the mask was found with {what} {theirs}, this run has {ours}", stacklevel=5)
            # Refuse another network's mask before there is a folder; training attaches it.
            matching_parameters(dict(mask), model, called=setup.model)
        task = _opened(place, model, data, setup, training, mask)
        return _train(replace(task, resume_command=resume_command), setup, progress)

    with shown(progress and rank() == 0, for_person):
        on_first(partial(refuse_unlike, setup, folder))
        return folder, _once(folder, work, training, wait)


def _once(folder: RunFolder, work: Callable[[], dict[str, Any]], training: Training, wait: bool) -> dict[str, Any]:
    """The result of a run; tells if it is an earlier one by another engine than is asked for, which is the same run."""
    earlier = on_first(lambda: folder.finished)
    result = folder.once(timed(work), wait=wait)
    by = result.get("engine", "dense")
    if earlier and training.engine not in ("auto", by):
        say(f"trained with the engine {by}, not {training.engine}: another --out trains it anew")
    return result


def timed(work: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    """The same job; its result also has the `wall_seconds` of this session, from reading data to the last test."""

    def with_time() -> dict[str, Any]:
        began = time.perf_counter()
        result = work()
        return result | {"wall_seconds": round(time.perf_counter() - began, 3)}

    return with_time


def identity(*records: Setup | Pruning | Training) -> dict[str, Any]:
    """The settings that make a run what it is."""
    merged: dict[str, Any] = {}
    for record in records:
        merged |= {key: value for key, value in asdict(record).items() if key not in NOT_IDENTITY}
    return without_later(merged)


def run_name(setup: Setup, *method: str) -> str:
    """What a run folder is called, before the hash: network, data set, method and density."""
    return "-".join([setup.model.replace(":", "-").replace("/", "-"), Path(setup.data).name, *method])


def _of_all_weights(model: nn.Module, setup: Setup, data: Data) -> Mask:
    """The mask of a dense network, at which gradual pruning begins."""
    mask = prune(model, density=1.0, method="random", seed=setup.seed)
    mask.metadata |= {"method": DENSE, "network": setup.model, "data": data.name, "cost": Cost().record()}
    return mask


def _method(mask: Mask) -> str:
    return mask.metadata.get("method", "mask")


FEW_UPDATES = 10
"""below it, gradual pruning cuts so much at once that accuracy is lost (docs/which-method.md)"""


def prepare(setup: Setup, training: Training, density: float) -> tuple[Data, nn.Module]:
    """Data and network; bad settings are refused here, before hours of pruning."""
    pick_device(setup.device)
    data = load_data(setup)
    steps = steps_per_epoch(training, data)
    model = create_model(setup, data)
    refuse_single_images(model, data, training)
    refuse_views(model, data, training)
    if (rule := rule_of(training, steps)) is not None:
        total = sum(weight.numel() for weight in prunable_weights(model).values())
        whole = steps * (training.epochs or 0)
        rule.check(round(density * total), total, whole)
        if isinstance(rule, Gradual) and (updates := rule.updates(whole)) < FEW_UPDATES:
            say(
                f"gradual pruning has {updates} updates in these {whole} steps, each of which cuts deep:"
                f" --update-every {max(whole // 40, 1)} makes them smaller and more accurate"
            )
    return data, model


def _mask_of(folder: RunFolder, model: nn.Module, data: Data, setup: Setup, pruning: Pruning, progress: bool) -> Mask:
    """The mask of an interrupted run, or a new one."""
    path = folder.path / MASK
    if on_first(path.exists):
        say(f"the mask is there already: {path}")
        return Mask.load(path)
    start = time.perf_counter()
    mask = find_mask(model, data, setup, pruning, progress=progress)
    mask.metadata["prune_seconds"] = round(time.perf_counter() - start, 3)
    return mask


def _opened(
    place: tuple[Path, str, dict[str, Any]],
    model: nn.Module,
    data: Data,
    setup: Setup,
    training: Training,
    mask: Mask | None,
) -> Task:
    """Make the folder and leave the mask in it; only now, when bad settings have been refused."""
    folder = RunFolder.find(*place)

    def leave_mask() -> None:
        RunFolder.open(*place, fingerprint(setup, data))
        if mask is not None and not (folder.path / MASK).exists():
            mask.save(folder.path / MASK)

    on_first(leave_mask)
    return Task(
        model=model,
        data=data,
        training=training,
        device=pick_device(setup.device),
        mask=mask,
        folder=folder,
        seed=setup.seed,
    )


def _train(task: Task, setup: Setup, progress: bool) -> dict[str, Any]:
    trained = train(
        task.model,
        task.data,
        task.training,
        mask=task.mask,
        folder=task.folder,
        seed=task.seed,
        device=setup.device,
        resume_command=task.resume_command,
        progress=progress,
    )
    return result_of(setup, task, trained)


def result_of(setup: Setup, task: Task, trained: TrainResult) -> dict[str, Any]:
    """What a finished run's `result.json` holds; for a mask that has moved, of the last one."""
    mask = task.mask
    if task.training.update != "none" and task.folder is not None:
        mask = Mask.load(task.folder.path / MASK)
    ledger = replace(trained.cost, finding=finding_cost(mask))
    return describe(setup, task.data, mask) | asdict(trained) | {"cost": ledger.record()}


def finding_cost(mask: Mask | None) -> Cost | None:
    """What a mask cost to find: nothing for a dense network, None where nobody counted."""
    return Cost() if mask is None else Cost.read(mask.metadata.get("cost"))


def describe(setup: Setup, data: Data, mask: Mask | None) -> dict[str, Any]:
    """What every `result.json` begins with: what was run, and what the mask leaves; None is the dense network."""
    about: dict[str, Any] = {"model": setup.model, "data": data.name, "seed": setup.seed}
    about["cost"] = Ledger(finding=finding_cost(mask)).record()
    if mask is None:
        return about | {"method": DENSE, "density": 1.0}
    return about | {
        "method": _method(mask),
        "pattern": mask.metadata.get("pattern"),
        "density": mask.density,
        "kept": mask.kept,
        "prunable": mask.total,
        "densities": mask.densities(),
        "empty_layers": mask.empty_layers,
        "connected": mask.metadata.get("connected"),
        "prune_seconds": mask.metadata.get("prune_seconds"),
    }
