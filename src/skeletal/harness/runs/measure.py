"""Masks measured without training: what pruning at initialization leaves of a network and of its gradient."""

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from skeletal.core.choices import require
from skeletal.core.diagnosis.diagnose import diagnose
from skeletal.core.diagnosis.saliency import measure_saliency
from skeletal.core.masks.mask import Mask
from skeletal.core.model.distributed import rank
from skeletal.core.model.preserve import device_of
from skeletal.core.model.weights import prunable_weights
from skeletal.core.progress import shown
from skeletal.core.pruning.algorithm import Step
from skeletal.core.pruning.methods import METHODS
from skeletal.harness.config import Pruning, Setup
from skeletal.harness.data import Data, Stream, resident
from skeletal.harness.data.draws import seed_of
from skeletal.harness.devices import pick_device
from skeletal.harness.output.bars import for_person
from skeletal.harness.runs.experiment import describe, identity, run_name, timed
from skeletal.harness.runs.finding import DENSE, create_model, find_mask, fingerprint, load_data, refuse_unlike
from skeletal.harness.store.folders import MASK, RunFolder, mask_file

BATCHES, BATCH_SIZE = 10, 128


def layer_densities(mask: Mapping[str, Tensor]) -> dict[str, float]:
    """The fraction of weights kept in each layer, by parameter name."""
    return {name: int(keep.sum()) / max(keep.numel(), 1) for name, keep in mask.items()}


def whole(model: nn.Module) -> Mask:
    """The mask of the dense network: every prunable weight."""
    return Mask({name: torch.ones_like(weight, dtype=torch.bool) for name, weight in prunable_weights(model).items()})


def measured(
    model: nn.Module,
    data: Data,
    mask: Mask,
    *,
    seed: int,
    bn_mode: Literal["train", "eval"] = "train",
    batches: int = BATCHES,
) -> dict[str, Any]:
    """What a mask leaves of a network at its initialization, as plain numbers.

    Saliency and gradient norm are of the mean gradient of the cross-entropy over `batches` batches of 128 training
    images, drawn with another seed than any mask is found on, but the same for all masks of a `seed`.

    Args:
        model: at its initialization; left as found.
        data: whose training split is read.
        mask: of any origin.
        seed: the setup's.
        bn_mode: mode of the network while its gradient is taken.
        batches: how many.

    Returns:
        kept, prunable, density; `densities` by layer; empty_layers, connected; effective_density, the fraction of
        prunable weights that lie on a path; macs, per example; force_saliency (Eq. 6), gradient_norm (squared), loss.

    """
    stream = Stream(resident(data.train, device_of(model)), BATCH_SIZE, seed_of("measure", seed))
    saliency = measure_saliency(model, stream, mask, count=batches, bn_mode=bn_mode, seed=seed)
    found = diagnose(model, mask, torch.zeros(2, data.channels, data.image_size, data.image_size))
    return {
        "kept": mask.kept,
        "prunable": mask.total,
        "density": mask.density,
        "densities": layer_densities(mask),
        "empty_layers": mask.empty_layers,
        "connected": found.connected,
        "effective_density": found.effective_density,
        "macs": asdict(found.macs),
        "force_saliency": saliency.force,
        "gradient_norm": saliency.gradient_norm,
        "loss": saliency.loss,
    }


def _how(batches: int) -> dict[str, Any]:
    return {"kind": "measure", "measure_batches": batches, "measure_batch_size": BATCH_SIZE}


def _place(
    setup: Setup, pruning: Pruning, root: Path, name: str | None, batches: int
) -> tuple[Path, str, dict[str, Any]]:
    require("method", pruning.method, [*METHODS, DENSE])
    if pruning.best_of > 1:
        raise ValueError("what is measured is one mask, not the best of several: leave --best-of out")
    dense = pruning.method == DENSE
    method = [DENSE] if dense else [pruning.method, f"{pruning.density:g}"]
    what = {"method": DENSE, "bn_mode": pruning.bn_mode or "train"} if dense else identity(pruning)
    return root, name or run_name(setup, *method, "measured"), identity(setup) | what | _how(batches)


def measure_folder(
    setup: Setup, pruning: Pruning, *, root: Path, name: str | None = None, measure_batches: int = BATCHES
) -> RunFolder:
    """Where `measure` leaves, or would leave, what it finds with these settings; creates nothing."""
    return RunFolder.find(*_place(setup, pruning, root, name, measure_batches))


def measure(
    setup: Setup,
    pruning: Pruning,
    *,
    root: Path,
    name: str | None = None,
    measure_batches: int = BATCHES,
    wait: bool = False,
    progress: bool = True,
) -> tuple[RunFolder, dict[str, Any]]:
    """Prune at initialization and measure what is left; nothing is trained. A finished measurement is only read.

    Args:
        setup: the network, the data and where they run.
        pruning: resolved; the method "dense" measures the network before pruning.
        root: folder of run folders.
        name: of the run folder, in place of model-data-method-density-measured.
        measure_batches: training batches that the gradient is averaged over, see `measured`.
        wait: for a process that is at work on the same measurement, instead of an error.
        progress: tell on stderr what is done and how far it is.

    Returns:
        The run's folder, which also holds the mask, and what is in its `result.json`: model, data, seed, method,
        prune_seconds; what `measured` returns; `filled`, how many weights of the mask had no score; and `trace`, a
        list of `{step, kept, densities}`, what was kept after each pruning step, densities by layer.

    Raises:
        ValueError: the method is unknown, and what `prune` raises.
        BusyError: another process is at work on the same measurement.

    """
    place = _place(setup, pruning, root, name, measure_batches)
    folder = RunFolder.find(*place)

    def work() -> dict[str, Any]:
        data = load_data(setup)
        model = create_model(setup, data).to(pick_device(setup.device))
        mask, trace = _found(model, data, setup, pruning, progress)
        result = describe(setup, data, mask)
        bn_mode = pruning.bn_mode or "train"
        result |= measured(model, data, mask, seed=setup.seed, bn_mode=bn_mode, batches=measure_batches)
        _leave(place, mask, fingerprint(setup, data))
        return result | {"method": pruning.method, "filled": _filled(mask), "trace": trace}

    with shown(progress and rank() == 0, for_person):
        refuse_unlike(setup, folder)
        return folder, folder.once(timed(work), wait=wait)


def _found(
    model: nn.Module, data: Data, setup: Setup, pruning: Pruning, progress: bool
) -> tuple[Mask, list[dict[str, Any]]]:
    """A setup's mask, and what was kept after each pruning step; every weight for the dense network."""
    trace: list[dict[str, Any]] = []

    def record(step: Step) -> None:
        trace.append({"step": step.step, "kept": step.kept, "densities": layer_densities(step.mask)})

    if pruning.method == DENSE:
        return whole(model), trace
    start = time.perf_counter()
    mask = find_mask(model, data, setup, pruning, progress=progress, on_step=record)
    mask.metadata["prune_seconds"] = round(time.perf_counter() - start, 3)
    return mask, trace


def _masked_place(setup: Setup, mask: Mask, root: Path, batches: int) -> tuple[Path, str, dict[str, Any]]:
    name = run_name(setup, mask.metadata.get("method", "mask"), f"{mask.density:.4g}", "measured")
    return root, name, identity(setup) | {"mask": mask.digest} | _how(batches)


def measure_masked_folder(setup: Setup, mask_path: Path, *, root: Path, measure_batches: int = BATCHES) -> RunFolder:
    """Where `measure_masked` leaves, or would leave, what it finds with these settings; creates nothing."""
    return RunFolder.find(*_masked_place(setup, Mask.load(mask_file(mask_path)), root, measure_batches))


def measure_masked(
    setup: Setup, mask_path: Path, *, root: Path, measure_batches: int = BATCHES, wait: bool = False
) -> tuple[RunFolder, dict[str, Any]]:
    """Measure a mask from a file on a setup's network, which need not be the one it was found on; else as `measure`.

    Raises:
        MaskError: the mask is of another architecture.
        BusyError: another process is at work on the same measurement.

    """
    mask = Mask.load(mask_file(mask_path))
    place = _masked_place(setup, mask, root, measure_batches)
    folder = RunFolder.find(*place)

    def work() -> dict[str, Any]:
        data = load_data(setup)
        model = create_model(setup, data).to(pick_device(setup.device))
        result = describe(setup, data, mask)
        result |= measured(model, data, mask, seed=setup.seed, batches=measure_batches)
        _leave(place, mask, fingerprint(setup, data))
        return result

    refuse_unlike(setup, folder)
    return folder, folder.once(timed(work), wait=wait)


def _leave(place: tuple[Path, str, dict[str, Any]], mask: Mask, of: dict[str, str]) -> None:
    mask.save(RunFolder.open(*place, of).path / MASK)


def _filled(mask: Mask) -> int:
    """How many weights of the finished mask had no score and were filled in by position."""
    filled = mask.metadata.get("filled") or [{"step": 0, "weights": 0}]
    return filled[-1]["weights"] if filled[-1]["step"] == mask.metadata.get("steps") else 0
