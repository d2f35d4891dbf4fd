"""Looking again at what a run has left: its trained network scored, its mask diagnosed."""

import warnings
from pathlib import Path
from typing import Any

import torch

from skeletal.core.choices import require
from skeletal.core.diagnosis.diagnose import Diagnosis, diagnose
from skeletal.core.masks.mask import Mask
from skeletal.core.masks.repair import repair
from skeletal.core.model.distributed import rank, together
from skeletal.core.progress import stage
from skeletal.harness import data as data_sets
from skeletal.harness.config import Setup
from skeletal.harness.devices import pick_device
from skeletal.harness.runs.finding import create_model, fingerprint, load_data
from skeletal.harness.runs.load import setup_of, shapes_of, trained
from skeletal.harness.store.folders import RunFolder, mask_file
from skeletal.harness.training import checkpoint
from skeletal.harness.training.engines import ENGINES, engine_for_all
from skeletal.harness.training.evaluate import Scores, evaluate

SPLITS = ("train", "validation", "test")


def _trained_by(path: Path) -> dict[str, Any] | None:
    state = checkpoint.load(path)
    return None if state is None else checkpoint.engine_of(state)


@together()
def evaluate_run(
    path: Path | str,
    *,
    split: str = "test",
    data_dir: Path | str | None = None,
    device: str = "auto",
    engine: str = "auto",
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
        ValueError: there is no such split or engine, or nothing in the split.

    Warns:
        UserWarning: the run was trained on other data of the same name, or its network has been rewritten.

    """
    require("engine", engine, ENGINES)
    require("split", split, SPLITS)
    folder = RunFolder.at(path)
    setup = setup_of(folder, data_dir, device)
    options = {name: folder.setting(name) for name in ("bf16", "channels_last")}
    batch_size = folder.setting("batch_size")
    data = load_data(setup)
    if rank() == 0 and (unlike := folder.unlike(fingerprint(setup, data))):
        warnings.warn(f"this is not what the run was trained on: {unlike}", stacklevel=3)
    part: data_sets.Split = getattr(data, split)
    if not len(part):
        raise ValueError(f"there are no {split} images: the run was trained with --validation {setup.validation:g}")
    model, mask = trained(folder, setup, data)
    target = pick_device(device)
    here = data_sets.shared(data_sets.resident(part, target))
    batches = here.batches(batch_size, train=False)  # as in training, so that the scores are the same
    network = engine_for_all(
        model.to(target),
        mask,
        engine,
        device=target,
        example=lambda: next(iter(batches))[0],
        autocast=lambda: torch.autocast(target.type, torch.bfloat16, enabled=options["bf16"]),
        earlier=_trained_by(folder.path) if engine == "auto" and target.type == "cpu" else None,
    ).network
    with stage(f"scoring on {split} images"):
        return evaluate(network, batches, device=target, shared=True, split=split, **options)


def diagnose_mask(
    path: Path, *, model: str | None = None, data: str | None = None, data_dir: Path | None = None, repaired: int = 0
) -> tuple[Mask, Diagnosis]:
    """The mask of a file or a run folder, repaired if asked for, and what it leaves of its network.

    Args:
        path: a mask file or a run folder.
        model: the network; by default the one the mask was found on, as its metadata says.
        data: the data set, for classes and image size; by default likewise.
        data_dir: where it lies; only image folders are looked at.
        repaired: give every layer at least this many weights first (see `repair`); 0 leaves the mask as it is.

    Raises:
        ValueError: the mask does not name its network or data set, and none was given; or the run is dense.

    """
    mask = Mask.load(mask_file(path))
    model = model or mask.metadata.get("network")
    data = data or mask.metadata.get("data")
    if not model or not data:
        raise ValueError(f"{path} does not name its network and data set: pass --model and --data")
    setup = Setup(
        model=model,
        data=data,
        data_dir=data_dir,
        seed=mask.metadata.get("seed", 0),
        image_size=mask.metadata.get("image_size"),
    )
    shapes = shapes_of(setup)
    network = create_model(setup, shapes)
    if repaired:
        mask = repair(mask, network, repaired)
    return mask, diagnose(network, mask, torch.zeros(2, shapes.channels, shapes.image_size, shapes.image_size))
