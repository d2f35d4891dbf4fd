"""What a run is made of: three plain records, and presets that fill in what was left out.

A field that is `None` means "as the preset says", or, where public codes differ from the paper, "as in that code"
(`Pruning.as_in`). `resolve` replaces every `None`, so that what lands in `config.json` is complete. This file does not
import torch: the command line needs it to show its help.
"""

import math
from dataclasses import dataclass, fields, replace
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, TypeVar

from skeletal.core.choices import named, spelled
from skeletal.core.patterns.names import canonical
from skeletal.core.pruning.shorthand import expanded
from skeletal.harness.limits import check
from skeletal.harness.names import DATA_SETS, NETWORKS


@dataclass(frozen=True, kw_only=True)
class Setup:
    """The network, the data and where they run."""

    model: str = "vgg-mini"
    """network, by name: ours (`skeletal doctor` lists them), any of torchvision's or timm's; or
    package.module:function"""
    data: str = "digits"
    """digits, fashion-mnist, cifar10, cifar100, tiny-imagenet, imagenet, or the path of an ImageFolder"""
    image_size: int | None = None
    """side in pixels that images of an ImageFolder, or of imagenet, are resized to (default 224)"""
    validation: float | None = None
    """fraction of the training images held out for validation (default 0.1; of the preset imagenet 0)"""
    download: bool = False
    """get cifar10, cifar100 or fashion-mnist through torchvision, if it is not here"""
    data_dir: Path | None = None
    """folder of the data set; by default `./data`, then `~/.cache/skeletal`"""
    seed: int = 0
    """seed of initial weights, batches, augmentation and random scores"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps"""
    workers: int = 2
    """processes that decode images, for data sets too large for memory"""
    skip_corrupt: bool = False
    """skip images that cannot be decoded, with a warning that counts them, instead of failing"""


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """How the mask is found."""

    method: str = "force"
    """force, force-floor, force-regrow, snip, snip-mb, grasp, grasp-mb, grasp-it, grasp-iterative, synflow, prospr,
    ntk-sap, px, phew, npb, magnitude, random, random-uniform, random-erk; `imp` (trains), `dense` (no mask)"""
    density: float | None = None
    """fraction of prunable weights to keep (default 0.1)"""
    sparsity: float | None = None
    """1 - density; give one of the two"""
    pattern: str | None = None
    """weights that stay or go together: channels (whole ones), fan-in (equally many in every output unit of a layer),
    N:M (at most N of M inputs, such as 2:4), RxC (blocks of R outputs and C inputs, such as 4x4)"""
    steps: int | None = None
    """pruning steps T; one-shot methods take 1"""
    schedule: Literal["exponential", "linear"] = "exponential"
    """how the number of kept weights falls: Eq. 9 or Eq. 8 of the paper"""
    batches_per_step: int | None = None
    """batches whose gradients are averaged at each step; snip-mb is snip with as many as FORCE sees in all its steps"""
    prune_batch_size: int | None = None
    """examples in each of those batches, over all processes"""
    as_in: str = "paper"
    """whose defaults the next four options take: paper, force-code (the paper's official code), grasp-code,
    synflow-code, pysnip"""
    sampling: Literal["plain", "balanced"] | None = None
    """plain: batches as the loader gives them (the default); balanced: equally many examples of each class"""
    loss: Literal["cross-entropy", "nll", "tempered"] | None = None
    """the loss that is differentiated: cross-entropy (the default), nll on raw logits, or tempered, the cross-entropy
    of logits / 200"""
    average: Literal["signed", "absolute"] | None = None
    """how a step's batches are averaged: gradients with their sign (the default), or their absolute values"""
    bn_mode: Literal["train", "eval"] | None = None
    """mode of the network while it is scored (default train)"""
    precision: Literal["float32", "bfloat16"] = "float32"
    """precision of the forward pass in scoring; bfloat16 takes about half the time"""
    scoring_engine: Literal["dense", "sparse"] = "dense"
    """what computes gradients once few weights are left, for nested methods: torch, or the sparse kernels"""
    micro_batch: int | None = None
    """split each batch into pieces of at most this many images, to save memory; changes what batch norm sees"""
    recompute: bool = False
    """recompute parts of the network in the backward pass, to save memory; the mask is the same"""
    rewind_epochs: int | None = None
    """imp: epoch whose weights every round begins with (default 3% of the training; 0 is the initialization)"""
    best_of: int = 1
    """find so many masks, on other batches each, and keep the one whose loss falls furthest in 50 steps of training"""
    on_collapse: Literal["raise", "keep"] = "keep"
    """when too few weights have a score: stop, or fill up by position with a warning"""


@dataclass(frozen=True, kw_only=True)
class Training:
    """How the skeleton is trained: SGD, by default with a step schedule, as in the paper's appendix A."""

    epochs: int | None = None
    """passes over the training images"""
    batch_size: int | None = None
    """images per step, over all processes"""
    lr: float | None = None
    """initial learning rate; of one-cycle the highest"""
    momentum: float | None = None
    """momentum of SGD"""
    weight_decay: float | None = None
    """L2 penalty, on every parameter"""
    milestones: tuple[float, ...] | None = None
    """fractions of the training at which the learning rate is divided by 10"""
    decay: Literal["steps", "one-cycle"] | None = None
    """steps (the default of all presets but cifar10-short): divide the learning rate at the milestones; one-cycle:
    raise it for a quarter of the epochs, then lower it evenly to nothing, for short trainings"""
    bf16: bool = False
    """train under bfloat16 autocast"""
    channels_last: bool = False
    """keep images and weights in channels-last memory format"""
    sync_bn: bool = False
    """on several GPUs: batch norm over the whole batch, not over each process's part of it"""
    test_every: int = 0
    """also test every N epochs; 0 tests once, at the end"""
    engine: Literal["auto", "dense", "sparse"] = "auto"
    """what computes a masked network on a CPU: torch, the sparse kernels, or whichever is measured to be faster"""
    graph: Literal["auto", "no"] = "auto"
    """on a GPU: record the training step as a CUDA graph and replay it where possible, or never"""
    compile: Literal["auto", "yes", "no"] = "auto"
    """use torch.compile: on a GPU where the run is long enough to pay, always, or never"""
    update: Literal["none", "set", "rigl", "gradual"] = "none"
    """move the mask while training: set regrows weights at random, rigl where the gradient is largest, gradual prunes
    more and more (with --method dense from all weights)"""
    update_every: int | None = None
    """steps between two updates (default 100; for set 0, an epoch)"""
    update_fraction: float | None = None
    """set, rigl: fraction of each layer's kept weights that an update replaces (default 0.3)"""
    update_end: float | None = None
    """fraction of the training after which the mask stays (default 0.75; for set 1)"""
    update_density: float | None = None
    """gradual: density at the end"""
    tensorboard: bool = False
    """also write metrics and layer densities for TensorBoard, into the run folder"""
    log: tuple[Literal["csv", "tensorboard", "wandb", "mlflow"], ...] = ()
    """also log every epoch to: csv (metrics.csv in the run folder), tensorboard, wandb, mlflow; several may be named"""


HELD_OUT = 0.1
"""of the training images, by default: the paper's appendix A says so for CIFAR and Tiny-ImageNet"""

# The paper, section 5.1, 5.2 and appendix A. Milestones are fractions, so that `--epochs` keeps their proportion.
# On ImageNet it follows PyTorch's example, which trains on every training image, as its official code does.
PRESETS: dict[str, dict[str, Any]] = {
    "cifar10": dict(
        epochs=350, batch_size=128, lr=0.1, momentum=0.9, weight_decay=5e-4, milestones=(150 / 350, 250 / 350),
        steps=300, batches_per_step=1, prune_batch_size=128, density=0.1,
    ),
    # Ours: long enough to tell choked masks from good ones, and no more (docs/results.md).
    "cifar10-short": dict(
        epochs=10, batch_size=128, lr=0.1, momentum=0.9, weight_decay=5e-4, decay="one-cycle",
        milestones=(150 / 350, 250 / 350), steps=60, batches_per_step=1, prune_batch_size=128, density=0.1,
    ),
    "cifar100": dict(
        epochs=350, batch_size=128, lr=0.1, momentum=0.9, weight_decay=5e-4, milestones=(150 / 350, 250 / 350),
        steps=60, batches_per_step=10, prune_batch_size=128, density=0.1,
    ),
    "tiny-imagenet": dict(
        epochs=300, batch_size=128, lr=0.1, momentum=0.9, weight_decay=5e-4, milestones=(1 / 2, 3 / 4),
        steps=60, batches_per_step=20, prune_batch_size=128, density=0.1,
    ),
    "imagenet": dict(
        epochs=90, batch_size=256, lr=0.1, momentum=0.9, weight_decay=1e-4, milestones=(30 / 90, 60 / 90),
        steps=60, batches_per_step=40, prune_batch_size=256, density=0.1, validation=0.0,
    ),
    "quick": dict(
        epochs=30, batch_size=128, lr=0.1, momentum=0.9, weight_decay=5e-4, milestones=(1 / 2, 3 / 4),
        steps=60, batches_per_step=1, prune_batch_size=128, density=0.1,
    ),
}  # fmt: skip

# What changes a mask and differs between the paper and public codes, as docs/fidelity.md explains in full, with what no
# option expresses. Not the method, nor steps and batches, which belong to the data set.
AS_IN: dict[str, dict[str, Any]] = {
    "paper": dict(loss="cross-entropy", average="signed", bn_mode="train", sampling="plain"),
    "force-code": dict(loss="nll", average="signed", bn_mode="train", sampling="plain"),
    "grasp-code": dict(loss="tempered", average="signed", bn_mode="train", sampling="balanced"),
    "synflow-code": dict(loss="cross-entropy", average="signed", bn_mode="eval", sampling="plain"),
    "pysnip": dict(loss="cross-entropy", average="absolute", bn_mode="train", sampling="plain"),
}

# What a moving mask does unless told otherwise: the defaults of `skeletal.SET`, `RigL` and `Gradual`.
UPDATES: dict[str, dict[str, Any]] = {
    "none": {},
    "set": dict(update_every=0, update_fraction=0.3, update_end=1.0),
    "rigl": dict(update_every=100, update_fraction=0.3, update_end=0.75),
    "gradual": dict(update_every=100, update_end=0.75),
}

# Settings added later are left out while they change nothing, so that earlier runs keep their folders
# and their checkpoints resume.
LATER = {
    "micro_batch": None, "sync_bn": False, "skip_corrupt": False, "decay": "steps",
    "rewind_epochs": None, "image_size": None, "pattern": None, "best_of": 1, "validation": HELD_OUT,
    "update": "none", "update_every": None, "update_fraction": None, "update_end": None, "update_density": None,
}  # fmt: skip

# A run stays the same run wherever things lie, whatever computes them and whosever defaults were taken.
NOT_IDENTITY = (
    "data_dir", "download", "device", "workers", "engine", "graph", "compile", "tensorboard", "log", "sparsity",
    "as_in", "recompute",
)  # fmt: skip

IMP = "imp"
LOGGERS = ("csv", "tensorboard", "wandb", "mlflow")

ONE_SHOT = ("random", "random-uniform", "random-erk", "magnitude", "snip", "grasp", "prospr", "phew", "npb")
ITERATIVE = ("force", "force-floor", "force-regrow", "grasp-it", "grasp-iterative", "synflow", "ntk-sap", "px")

Record = TypeVar("Record", Setup, Pruning, Training)


def _folder(place: str) -> str:
    """A folder of images, by one name however it was typed: its name says which run it is."""
    short = str(Path(place))
    return place if short in DATA_SETS else short  # `./digits` means the folder


def resolve(record: Record, preset: str) -> Record:
    """Fill every field that is `None` from the preset and from `as_in`; explicit values win.

    Raises:
        ValueError: unknown preset or `as_in`, a number out of its range, `density` and `sparsity` given together, or a
            setting that the method does not take.

    """
    check(record)
    known: dict[str, Any] = {"validation": HELD_OUT, "decay": "steps"} | PRESETS[named("preset", preset, PRESETS)]
    if isinstance(record, Setup):  # the names of our networks and data sets as the tables have them
        data = _folder(record.data) if Path(record.data).is_dir() else spelled(record.data, DATA_SETS)
        record = replace(record, model=spelled(record.model, NETWORKS), data=data)
    if isinstance(record, Pruning):
        method, many = expanded(record.method)
        as_in = named("as-in", record.as_in, AS_IN)
        record = replace(record, method=spelled(method, (*ONE_SHOT, *ITERATIVE, IMP, "dense")), as_in=as_in)
        if record.best_of > 1 and record.method in (IMP, "dense"):
            raise ValueError(f"the method {record.method} finds no mask before training: leave --best-of out")
        if record.rewind_epochs is not None and record.method != IMP:
            raise ValueError(
                f"the method {record.method} rewinds nothing: leave --rewind-epochs out, or choose --method imp"
            )
        if record.pattern is not None:
            record = replace(record, pattern=canonical(record.pattern))
            if record.method == IMP:
                raise ValueError(
                    "the method imp prunes single weights: leave --pattern out, or choose another --method"
                )
        known |= AS_IN[as_in]
        if many:  # as many as an iterative method with the same settings sees in all its steps
            each, steps = record.batches_per_step or known["batches_per_step"], record.steps or known["steps"]
            record = replace(record, steps=None, batches_per_step=each * steps)
        if record.density is not None and record.sparsity is not None:
            raise ValueError(
                f"give density or sparsity, not both (density={record.density}, sparsity={record.sparsity})"
            )
        if record.sparsity is not None:
            # In decimals: 1 - 0.98 is 0.02 to the person who writes it, and must be the same run.
            record = replace(record, sparsity=None, density=float(1 - Decimal(str(record.sparsity))))
        if record.method in ONE_SHOT:
            known["steps"] = 1
        elif record.method == IMP:
            known["steps"] = rounds_to(known["density"] if record.density is None else record.density)
        elif record.method in ("synflow", "ntk-sap", "px"):
            known["steps"] = 100
    if isinstance(record, Training):
        decay = record.decay or known["decay"]
        if decay != "steps" and record.milestones not in (None, known["milestones"]):
            raise ValueError(f"--decay {decay} has no milestones: leave --milestones out, or choose --decay steps")
        record = replace(record, update=named("update", record.update, UPDATES))
        known |= _of_update(record)
    missing = {f.name: known[f.name] for f in fields(record) if getattr(record, f.name) is None and f.name in known}
    return replace(record, **missing)


def rounds_to(density: float) -> int:
    """Rounds of iterative magnitude pruning that each prune a fifth of what is left, as in its paper."""
    return max(1, math.ceil(round(math.log(density) / math.log(0.8), 6)))


def _of_update(training: Training) -> dict[str, Any]:
    """The defaults of a moving mask, after a check of the settings given.

    Raises:
        ValueError: a setting does not apply to this update, or gradual pruning is not told where to end.

    """
    known = UPDATES[training.update]
    takes = {*known, "update_density"} if training.update == "gradual" else set(known)
    for name in ("update_every", "update_fraction", "update_end", "update_density"):
        if getattr(training, name) is not None and name not in takes:
            raise ValueError(f"{name} is given, which --update {training.update} does not take: leave it out")
    if training.update == "gradual" and training.update_density is None:
        raise ValueError("--update gradual needs --update-density: the fraction of weights left at the end")
    return known


def without_update(training: Training) -> Training:
    """The same training of a mask that stays."""
    unset: dict[str, Any] = {f.name: None for f in fields(training) if f.name.startswith("update_")}
    return replace(training, update="none", **unset)


def with_later(settings: dict[str, Any]) -> dict[str, Any]:
    """A run's settings with those that `without_later` has left out."""
    return LATER | settings


def without_later(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as an earlier version had them, where later ones change nothing, or are None and not said."""
    return {name: value for name, value in settings.items() if name not in LATER or value not in (LATER[name], None)}
