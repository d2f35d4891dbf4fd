"""How a mask is found: the network at its initialization, the data set, and the batches it is pruned on."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from skeletal.core.choices import named
from skeletal.core.extras import MissingExtraError
from skeletal.core.masks.mask import Mask
from skeletal.core.model.distributed import on_first, rank, ranks
from skeletal.core.model.gradients import Derivatives
from skeletal.core.model.passes import listening
from skeletal.core.model.preserve import differentiable, preserve_model, preserve_values
from skeletal.core.progress import shown, stage
from skeletal.core.pruning.algorithm import Step
from skeletal.core.pruning.methods import METHODS
from skeletal.core.pruning.schedules import Schedule
from skeletal.core.seeds import seed_of
from skeletal.engine.prune import prune
from skeletal.harness import data as data_sets
from skeletal.harness import models
from skeletal.harness.config import HELD_OUT, IMP, Pruning, Setup
from skeletal.harness.data import Data
from skeletal.harness.devices import own_stream, pick_device, tuned
from skeletal.harness.ledger import of_all_ranks
from skeletal.harness.meter import Meter, uses_of
from skeletal.harness.models import own
from skeletal.harness.output.bars import for_person
from skeletal.harness.runs.best_of import best_of
from skeletal.harness.runs.captured_scoring import CapturedDerivatives
from skeletal.harness.runs.public_codes import LOSSES
from skeletal.harness.stopwatch import Stopwatch
from skeletal.harness.store.folders import RunFolder

DENSE = "dense"
WORTH = 20
"""with at least this many passes, one is recorded on a GPU, which takes about a second"""


def load_data(setup: Setup) -> Data:
    """The data set of a setup, its validation split drawn by the setup's seed."""
    options: dict[str, Any] = {name: getattr(setup, name) for name in ("workers", "skip_corrupt", "image_size", "seed")}
    options["validation"] = HELD_OUT if setup.validation is None else setup.validation
    if setup.download:
        on_first(lambda: data_sets.fetch(setup.data, setup.data_dir))
    with stage(f"reading {setup.data}"):
        return data_sets.load(setup.data, setup.data_dir, **options)


def create_model(setup: Setup, data: Data | data_sets.Spec) -> nn.Module:
    """The network of a setup at its initialization, fitted to the data set's classes, channels and size.

    Raises:
        ValueError: there is no such network, or one of the user's own gives no logits for these classes.

    """
    model = models.create(
        setup.model,
        num_classes=data.num_classes,
        in_channels=data.channels,
        image_size=data.image_size,
        seed=setup.seed,
    )
    if own.is_function(setup.model) and isinstance(data, Data):
        _check_outputs(setup.model, model, data)
    return model


def fingerprint(setup: Setup, data: Data | None) -> dict[str, str]:
    """Tells what a setup names from others of the same names: its data, and the file of a network of the user's own."""
    code = own.digest(setup.model) if own.is_function(setup.model) else None
    known = {"data": None if data is None else data.fingerprint, "network": code}
    return {name: value for name, value in known.items() if value is not None}


def refuse_unlike(setup: Setup, *folders: RunFolder) -> None:
    """Keep finished runs from being taken for those on other data, or of a network that has been rewritten.

    Data that cannot be read here may be gone: the result stands.

    Raises:
        ValueError: it is another; says what differs.

    """
    finished = [folder for folder in folders if folder.finished and folder.fingerprint]
    if not finished:
        return
    try:
        data = load_data(replace(setup, download=False))
    except (data_sets.DataNotFoundError, data_sets.DataError, MissingExtraError):
        data = None
    here = fingerprint(setup, data)
    for folder in finished:
        folder.refuse_unlike(here)


def _check_outputs(name: str, model: nn.Module, data: Data) -> None:
    """What a network of the user's own gives, before anything counts on it."""
    for training, images in ((False, data.blank()), (True, data.blank().repeat(2, 1, 1, 1))):  # one has no variance
        try:
            with preserve_model(model, training=training, seed=0), preserve_values(model), differentiable():
                outputs = model(images)
        except Exception:
            if training:  # it may need a larger batch: training will tell
                continue
            raise
        found = str(tuple(outputs.shape)) if isinstance(outputs, torch.Tensor) else f"a {type(outputs).__name__}"
        wanted = (len(images), data.num_classes)
        if found != str(wanted):
            where = "two images in training mode" if training else f"an image of {tuple(images.shape[1:])}"
            remedy = ": give the logits alone, or train by a loop of your own (docs/howto/own-loop.md)"
            raise ValueError(
                f"{name} gives {found} for {where}, not logits {wanted}, one for each class of {data.name}"
                f"{remedy if training else ''}"
            )


def pruning_batches(data: Data, setup: Setup, pruning: Pruning, seed: int) -> Iterable[data_sets.Batch]:
    """What a mask is found on: training images without end, in plain or class-balanced batches; each rank its part.

    They are drawn apart from those of training, which would otherwise begin with the same batches.
    """
    size, seed = pruning.prune_batch_size or 0, seed_of("prune", seed)
    split = data_sets.resident(data.train, pick_device(setup.device))
    if pruning.sampling == "balanced":
        share = data_sets.Share(rank(), ranks())
        return data_sets.BalancedStream(split, size, seed, data.num_classes, share)
    return data_sets.Stream(data_sets.shared(split), size, seed)


def _engine(pruning: Pruning, device: torch.device) -> str | type[Derivatives]:
    """What takes derivatives: a recorded pass, where there are enough of them to pay for the recording."""
    passes = (pruning.steps or 1) * (pruning.batches_per_step or 1)
    dense = pruning.scoring_engine == Derivatives.name and not pruning.recompute
    return CapturedDerivatives if device.type == "cuda" and dense and passes >= WORTH else pruning.scoring_engine


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
        progress: tell on stderr how far it is.
        schedule: a function of the caller's own in place of the settings' schedule.
        on_step: see `prune`.

    Raises:
        ValueError: the method is unknown, or dense, which has no mask; the best of several is asked for where each
            step is looked at; and what `prune` and `best_of` raise.

    """
    if pruning.method == DENSE:
        raise ValueError("the method dense has no mask: there is nothing to prune; train it with `skeletal train`")
    if pruning.method == IMP:
        raise ValueError("the method imp finds its mask by training: use `skeletal run`, which does both")
    device = pick_device(setup.device)
    model.to(device)
    nested, uses = METHODS[named("method", pruning.method, METHODS)].nested, uses_of(model, data.blank())

    def find(k: int = 0) -> Mask:
        seed = setup.seed if k == 0 else seed_of("best of", setup.seed, k)
        meter = Meter(uses, everywhere=not nested)
        return _find(model, data, setup, pruning, seed, meter, schedule, on_step)

    with shown(progress and rank() == 0, for_person):
        if pruning.best_of == 1:
            return find()
        if on_step is not None:
            raise ValueError("one mask is looked at step by step here: leave --best-of out")
        compared_on = seed_of("best of", setup.seed, "training")
        with tuned(device):
            batches = partial(pruning_batches, data, setup, pruning, compared_on)
            return best_of(pruning.best_of, find, model, batches, Meter(uses))


def _find(
    model: nn.Module,
    data: Data,
    setup: Setup,
    pruning: Pruning,
    seed: int,
    meter: Meter,
    schedule: Schedule | None,
    on_step: Callable[[Step], None] | None,
) -> Mask:
    assert pruning.density is not None and pruning.batches_per_step and pruning.prune_batch_size, "not resolved"
    assert pruning.loss and pruning.average and pruning.bn_mode, "not resolved"
    device = pick_device(setup.device)
    stopwatch = Stopwatch(device)

    def after_step(step: Step) -> None:
        meter.turn_to(step.mask)
        if on_step is not None:
            on_step(step)

    with tuned(device), own_stream(device), listening(meter.add):
        mask = prune(
            model,
            pruning_batches(data, setup, pruning, seed),
            density=pruning.density,
            method=pruning.method,
            pattern=pruning.pattern,
            steps=pruning.steps,
            schedule=schedule or pruning.schedule,
            batches_per_step=pruning.batches_per_step,
            loss=LOSSES[pruning.loss],
            average=pruning.average,
            bn_mode=pruning.bn_mode,
            precision=pruning.precision,
            engine=_engine(pruning, device),
            micro_batch=pruning.micro_batch,
            recompute=pruning.recompute,
            on_collapse=pruning.on_collapse,
            seed=seed,
            on_step=after_step,
        )
    mask.metadata["cost"] = of_all_ranks(meter.cost + stopwatch.read()).record()
    mask.metadata |= {"network": setup.model, "data": data.name, "seed": setup.seed}
    if setup.image_size is not None:
        mask.metadata["image_size"] = setup.image_size
    if setup.validation not in (None, HELD_OUT):
        mask.metadata["validation"] = setup.validation
    mask.metadata |= {
        "prune_batch_size": pruning.prune_batch_size,
        "sampling": pruning.sampling,
        "as_in": pruning.as_in,
    }
    return mask
