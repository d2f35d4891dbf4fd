"""What takes part in a benchmark: ways to train and run one masked network, each doing the same job.

Every training step is the same: gradients to zero, forward, cross-entropy, backward, a step of SGD with momentum and
weight decay, on one batch; every way holds pruned weights at zero.
"""

import copy
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor, nn

from skeletal.core.masks.mask import Mask
from skeletal.core.model.precision import autocast
from skeletal.engine.compile import compile
from skeletal.harness.bench import peers

LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.01, 0.9, 5e-4


@dataclass(frozen=True)
class Contestant:
    """A way to train and run one network."""

    about: str
    train: Callable[[], object]
    """one training step"""
    infer: Callable[[], Tensor]
    """logits of the batch, in eval mode, without gradients"""
    state: Callable[[], dict[str, int]]
    """bytes of weights, gradients and optimizer state, after a training step"""
    details: str = ""
    """for the curious: layer by layer, what runs how"""


@dataclass(frozen=True)
class Candidate:
    """A row of the table of contestants."""

    title: str
    build: Callable[[nn.Module, Mask, Tensor, Tensor], Contestant]
    """from a network at its initialization (not changed), its mask, a batch's inputs and targets"""
    package: str | None = None
    """what has to be importable"""
    install: str = ""


def stepper(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    *,
    about: str,
    bf16: bool = False,
    copied: bool = True,
    details: str = "",
) -> Contestant:
    """A contestant that trains a module as it stands.

    Args:
        model: trained in place.
        inputs: (N, C, H, W), in the memory order they are to have.
        targets: (N,), classes.
        about: which way this is.
        bf16: forward and backward under autocast.
        copied: whether bfloat16 inference runs on a bfloat16 copy of the network; otherwise it, too, runs under
            autocast.
        details: handed on.

    """
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(parameters, LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)

    def train() -> Tensor:
        model.train()
        optimizer.zero_grad()
        precision: AbstractContextManager[object] = autocast("bfloat16", inputs.device) if bf16 else nullcontext()
        with precision:
            loss = nn.functional.cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
        return loss

    @lru_cache(maxsize=1)
    def half() -> tuple[nn.Module, Tensor]:
        return copy.deepcopy(model).bfloat16(), inputs.bfloat16()

    @torch.no_grad()
    def infer() -> Tensor:
        if not bf16:
            return model.eval()(inputs)
        if copied:
            network, x = half()
            return network.eval()(x).float()
        with autocast("bfloat16", inputs.device):
            return model.eval()(inputs).float()

    def state() -> dict[str, int]:
        memories = [value for kept in optimizer.state.values() for value in kept.values() if isinstance(value, Tensor)]
        return {
            "weights": _bytes(parameters),
            "gradients": _bytes(p.grad for p in parameters if p.grad is not None),
            "optimizer": _bytes(memories),
        }

    return Contestant(about, train, infer, state, details)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def masked_copy(model: nn.Module, mask: Mapping[str, Tensor], *, channels_last: bool = False) -> nn.Module:
    """A dense copy, pruned weights at zero, their gradients multiplied by the mask: how public codes hold them."""
    model = copy.deepcopy(model)
    order = torch.channels_last if channels_last else torch.contiguous_format
    model = model.to(memory_format=order)
    parameters = dict(model.named_parameters())
    for name, keep in mask.items():
        weight = parameters[name]
        factor = keep.to(weight.dtype)
        if channels_last and factor.dim() == 4:
            factor = factor.contiguous(memory_format=order)
        weight.data.mul_(factor)
        weight.register_hook(lambda gradient, factor=factor: gradient * factor)
    return model


def _ours(bf16: bool) -> Callable[[nn.Module, Mask, Tensor, Tensor], Contestant]:
    def build(model: nn.Module, mask: Mask, inputs: Tensor, targets: Tensor) -> Contestant:
        fast = compile(model, mask, inputs, dtype=torch.bfloat16 if bf16 else torch.float32)
        about = f"{'under autocast to bfloat16' if bf16 else 'float32'}, path auto: {fast.chosen}"
        return stepper(fast, inputs, targets, about=about, bf16=bf16, copied=False, details=str(fast.report))

    return build


def _masked_dense(model: nn.Module, mask: Mask, inputs: Tensor, targets: Tensor) -> Contestant:
    return stepper(masked_copy(model, mask), inputs, targets, about="float32, contiguous")


def _variant(bf16: bool, channels_last: bool) -> Callable[[nn.Module, Mask, Tensor, Tensor], Contestant]:
    about = f"{'bfloat16' if bf16 else 'float32'}, {'channels last' if channels_last else 'contiguous'}"

    def build(model: nn.Module, mask: Mask, inputs: Tensor, targets: Tensor) -> Contestant:
        if channels_last:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        network = masked_copy(model, mask, channels_last=channels_last)
        return stepper(network, inputs, targets, about=about, bf16=bf16)

    return build


def _best_dense(model: nn.Module, mask: Mask, inputs: Tensor, targets: Tensor) -> Contestant:
    """Of four dense ways, the one that trains fastest and the one that infers fastest, each by a trial here."""
    ways = [_variant(bf16, channels_last) for bf16 in (False, True) for channels_last in (False, True)]
    tried = [build(model, mask, inputs, targets) for build in ways]
    fastest = [
        times.index(min(times)) for times in ([_trial(w.train) for w in tried], [_trial(w.infer) for w in tried])
    ]
    tried.clear()
    trains, infers = (ways[i](model, mask, inputs, targets) for i in fastest)  # anew, as the trial has trained them
    if fastest[0] == fastest[1]:
        return trains
    return replace(trains, infer=infers.infer, about=f"training {trains.about}; inference {infers.about}")


def _trial(call: Callable[[], object]) -> float:
    """The faster of two calls after an uncounted first one."""
    call()
    return min(seconds(call) for _ in range(2))


def seconds(call: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Time of one call, by default on the wall; torch's `Timer` makes two others before each, see docs/decisions.md."""
    start = clock()
    call()
    return clock() - start


def _exchanged(exchange: peers.Exchange, about: str) -> Callable[[nn.Module, Mask, Tensor, Tensor], Contestant]:
    def build(model: nn.Module, mask: Mask, inputs: Tensor, targets: Tensor) -> Contestant:
        network = masked_copy(model, mask)
        count = peers.exchange_layers(network, mask, inputs, exchange)
        return stepper(network, inputs, targets, about=f"{about} in {count} of {len(mask)} layers, the rest as a")

    return build


OURS = ("ours", "ours16")
"""keys of `CONTESTANTS` that always take part; others are compared with the faster of them"""

CONTESTANTS: dict[str, Candidate] = {
    "ours": Candidate("skeletal.compile", _ours(False)),
    "ours16": Candidate("skeletal.compile, bfloat16", _ours(True)),
    "a": Candidate("masked dense float32", _masked_dense),
    "b": Candidate("best dense PyTorch", _best_dense),
    "c": Candidate("torch CSR", _exchanged(peers.csr, "unfold and CSR products")),
    "d": Candidate(
        "SparseProp", _exchanged(peers.sparseprop, "SparseProp, where its own trial finds it faster,"), "sparseprop",
        "pip install pybind11 && pip install --no-build-isolation sparseprop (needs a C++ compiler)",
    ),
    "e": Candidate(
        "SparseLab", _exchanged(peers.sparselab, "SparseLab's linear layers"), "sparselab",
        "pip install sparselab==0.2.2",
    ),
}  # fmt: skip
