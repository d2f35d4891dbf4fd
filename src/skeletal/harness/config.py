"""What a run is made of: three plain records, and presets that fill in what was not said.

A field that is `None` means "as the preset says", or, where public codes differ from the paper, "as in that code"
(`Pruning.as_in`). `resolve` replaces every `None`, so that what lands in `config.json` is complete. This file does not
import torch: the command line needs it to show its help.
"""

from dataclasses import dataclass, fields, replace
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, TypeVar

from skeletal.core.choices import require
from skeletal.harness.limits import check


@dataclass(frozen=True, kw_only=True)
class Setup:
    """The network, the data and where they run."""

    model: str = "vgg-mini"
    """network: one of ours (see `skeletal doctor`), or any torchvision or timm name"""
    data: str = "digits"
    """data set: digits, fashion-mnist, cifar10, cifar100, tiny-imagenet, imagenet, or the path of an ImageFolder"""
    data_dir: Path | None = None
    """where the data set lies; by default `./data`, then `~/.cache/skeletal`"""
    seed: int = 0
    """seeds the initial weights, the batches, the augmentation and the random scores"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps"""
    workers: int = 2
    """processes that decode images, for data sets too large for memory"""
    skip_corrupt: bool = False
    """leave out images that cannot be decoded, with a warning that counts them, in place of an error"""


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """How the mask is found."""

    method: str = "force"
    """force, force-regrow, snip, grasp, grasp-it, grasp-iterative, synflow, magnitude, random, random-uniform,
    random-erk; `dense` trains without a mask"""
    density: float | None = None
    """fraction of prunable weights to keep (default 0.1)"""
    sparsity: float | None = None
    """1 - density, for those who think in sparsity; give one of the two"""
    steps: int | None = None
    """pruning steps T; one-shot methods take 1"""
    schedule: Literal["exponential", "linear"] = "exponential"
    """how the number of kept weights falls: Eq. 9 or Eq. 8 of the paper"""
    batches_per_step: int | None = None
    """batches whose gradients are averaged at each step; SNIP-MB is snip with many"""
    prune_batch_size: int | None = None
    """examples in each of those batches, of all processes together"""
    as_in: str = "paper"
    """whose choices the next four options follow where they are not given: paper, force-code (the paper's official
    code), grasp-code, synflow-code, pysnip"""
    sampling: Literal["plain", "balanced"] | None = None
    """batches as the loader gives them (the default), or with equally many examples of each class"""
    loss: Literal["cross-entropy", "nll", "tempered"] | None = None
    """what is differentiated: cross-entropy (the default), nll on raw logits, or the cross-entropy of logits / 200"""
    average: Literal["signed", "absolute"] | None = None
    """over a step's batches: gradients with their sign (the default), or each batch's absolute values"""
    bn_mode: Literal["train", "eval"] | None = None
    """mode of the network while it is scored (default train)"""
    precision: Literal["float32", "bfloat16"] = "float32"
    """of the forward pass while the network is scored; bfloat16 takes about half the time"""
    scoring_engine: Literal["dense", "sparse"] = "dense"
    """what takes the gradients of nested methods once few weights are left: torch, or our kernels on those kept"""
    micro_batch: int | None = None
    """run each batch in pieces of at most so many images, to save memory; changes what batch norm sees"""
    recompute: bool = False
    """run parts of the network again on the way back, to save memory; the mask is the same"""
    on_collapse: Literal["raise", "keep"] = "keep"
    """when too few weights have a score: stop, or fill up by position and say so"""


@dataclass(frozen=True, kw_only=True)
class Training:
    """How the skeleton is trained: SGD with a step schedule, as in the paper's appendix A."""

    epochs: int | None = None
    """passes over the training images"""
    batch_size: int | None = None
    """images per step, of all processes together"""
    lr: float | None = None
    """learning rate at the start"""
    momentum: float | None = None
    """of SGD"""
    weight_decay: float | None = None
    """L2 penalty, on every parameter"""
    milestones: tuple[float, ...] | None = None
    """fractions of the training after which the learning rate is divided by 10"""
    bf16: bool = False
    """forward and backward under bf16 autocast"""
    channels_last: bool = False
    """keep images and weights in channels-last memory order"""
    sync_bn: bool = False
    """with several GPUs: batch norm over the whole batch, not over each process's part of it"""
    test_every: int = 0
    """also test every so many epochs; 0 tests once, at the end"""
    engine: Literal["auto", "dense", "sparse"] = "auto"
    """what computes a masked network on a CPU: torch on the dense weights, our kernels on the kept ones, or whichever
    is measured to be faster"""
    graph: Literal["auto", "no"] = "auto"
    """on a GPU: record the whole training step once, as a CUDA graph, and replay it, wherever that can be; or never"""
    compile: Literal["auto", "yes", "no"] = "auto"
    """let torch.compile make the kernels: on a GPU where the run is long enough for it to pay, always, never"""
    tensorboard: bool = False
    """also write each epoch's metrics and the layer densities for TensorBoard, into the run folder"""


# The paper, section 5.1, 5.2 and appendix A. Milestones are fractions, so that `--epochs` keeps their proportion.
PRESETS: dict[str, dict[str, Any]] = {
    "cifar10": dict(
        epochs=350, batch_size=128, lr=0.1, momentum=0.9, weight_decay=5e-4, milestones=(150 / 350, 250 / 350),
        steps=300, batches_per_step=1, prune_batch_size=128, density=0.1,
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
        steps=60, batches_per_step=40, prune_batch_size=256, density=0.1,
    ),
    "quick": dict(
        epochs=30, batch_size=128, lr=0.1, momentum=0.9, weight_decay=5e-4, milestones=(1 / 2, 3 / 4),
        steps=60, batches_per_step=1, prune_batch_size=128, density=0.1,
    ),
}  # fmt: skip

# What changes a mask and differs between the paper and public codes, as docs/fidelity.md tells in full, with what no
# option expresses. Not the method, nor steps and batches, which belong to the data set.
AS_IN: dict[str, dict[str, Any]] = {
    "paper": dict(loss="cross-entropy", average="signed", bn_mode="train", sampling="plain"),
    "force-code": dict(loss="nll", average="signed", bn_mode="train", sampling="plain"),
    "grasp-code": dict(loss="tempered", average="signed", bn_mode="train", sampling="balanced"),
    "synflow-code": dict(loss="cross-entropy", average="signed", bn_mode="eval", sampling="plain"),
    "pysnip": dict(loss="cross-entropy", average="absolute", bn_mode="train", sampling="plain"),
}

ONE_SHOT = ("random", "random-uniform", "random-erk", "magnitude", "snip", "grasp")

Record = TypeVar("Record", Setup, Pruning, Training)


def resolve(record: Record, preset: str) -> Record:
    """Fill every field that is `None` from the preset and from `as_in`; what was said explicitly wins.

    Raises:
        ValueError: unknown preset or `as_in`, a number out of its range, or `density` and `sparsity` given together.

    """
    require("preset", preset, PRESETS)
    check(record)
    known = dict(PRESETS[preset])
    if isinstance(record, Pruning):
        require("as-in", record.as_in, AS_IN)
        known |= AS_IN[record.as_in]
        if record.density is not None and record.sparsity is not None:
            raise ValueError(
                f"give density or sparsity, not both (density={record.density}, sparsity={record.sparsity})"
            )
        if record.sparsity is not None:
            # In decimals: 1 - 0.98 is 0.02 to whoever writes it, and has to be the same run.
            record = replace(record, sparsity=None, density=float(1 - Decimal(str(record.sparsity))))
        if record.method in ONE_SHOT:
            known["steps"] = 1
        elif record.method == "synflow":
            known["steps"] = 100
    missing = {f.name: known[f.name] for f in fields(record) if getattr(record, f.name) is None and f.name in known}
    return replace(record, **missing)
