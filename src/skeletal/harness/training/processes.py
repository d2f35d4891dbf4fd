"""The processes of one run, as `torchrun` and `accelerate launch` start them: how they meet and take steps together.

All ranks run the same program. Each takes its part of every batch (`data.shared`), gradients are averaged by examples,
sums are added up, and rank 0 alone writes. So a run on several processes takes the steps of a run on one: the batch
size is that of all together, and the learning rate is not scaled.
"""

import os
from collections.abc import Generator
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from skeletal.core.launcher import launched
from skeletal.core.model.distributed import PeerError, average_over_ranks, everyone, rank, ranks
from skeletal.harness.data.draws import seed_of


@contextmanager
def group() -> Generator[None]:
    """Join the other processes that a launcher has started; only rank 0 prints to stdout.

    Messages between CPUs go through gloo, between GPUs through NCCL. Without a launcher, or in a process group of the
    caller's own, nothing happens.
    """
    if launched() == 1 or dist.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere) if rank() else nullcontext():
            yield
    except PeerError:
        raise  # a group that has lost a rank may abort its process while it is taken down
    except BaseException as error:
        if isinstance(error, SystemExit) and not error.code:  # how a successful command ends
            _part()
        else:
            dist.destroy_process_group()
        raise
    _part()


def _part() -> None:
    everyone(None)  # a rank still in its last message may abort if the group is taken down under it
    dist.destroy_process_group()


def launcher() -> str:
    """How a command must begin, to be run by as many processes again."""
    if ranks() == 1:
        return "skeletal "
    return f"torchrun --nproc-per-node {os.environ.get('LOCAL_WORLD_SIZE', ranks())} -m skeletal "


@dataclass(frozen=True)
class StepReport:
    """What all ranks know of a step after they have met: their own reports, merged."""

    loss: float
    """mean over the examples of all ranks; only with several ranks"""
    examples: int
    """of all ranks together"""
    stopping: bool
    """one of them was asked to stop"""


class Team:
    """Takes training steps together, as one process would with the whole batch; with one process does nothing.

    Not `DistributedDataParallel`: that averages gradients by ranks, where a last batch need not divide evenly; waits
    forever for a rank whose part of it is empty, or that has failed; and stumbles over layers without a gradient, such
    as an empty layer of a compiled network.
    """

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self._device, self._network = device, network

    def turn_to(self, network: nn.Module) -> None:
        """Train another form of the network from now on."""
        self._network = network

    def meet(self, loss: Tensor, examples: int, stopping: bool) -> StepReport:
        """Tell the others of this rank's mean loss and number of examples, and whether it was asked to stop.

        Raises:
            PeerError: another rank has failed.

        """
        if ranks() == 1:
            return StepReport(float("nan"), examples, stopping)
        total, count, stops, failures = self._sum(loss.item() * examples, examples, stopping, 0)
        if failures:
            everyone(None)  # where it says why
            raise PeerError("another rank has failed")
        return StepReport(total / max(count, 1), int(count), stops > 0)

    def fail(self) -> None:
        """Join the meeting where the others wait, only to tell them that this rank has failed."""
        if ranks() > 1:
            self._sum(0.0, 0, False, 1)

    def _sum(self, *numbers: float) -> list[float]:
        sums = torch.tensor(numbers, dtype=torch.float64, device=self._device)
        try:
            dist.all_reduce(sums)
        except RuntimeError as error:
            raise PeerError(f"lost touch with the other ranks: {error}") from error
        return sums.tolist()

    def average_gradients(self, examples: int, merged: StepReport) -> None:
        """Replace gradients by those of the whole batch's mean loss; this rank's are of a mean over its `examples`."""
        if ranks() == 1 or merged.examples == 0:
            return
        weights = dict(self._network.named_parameters())
        # Asked anew at every step: a network may leave out a layer by chance, or on some ranks only.
        having = self._sum(*(weight.grad is not None for weight in weights.values()))
        gradients: Any = {}
        for (name, weight), somebody in zip(weights.items(), having, strict=True):
            if somebody:
                if weight.grad is None:
                    weight.grad = torch.zeros_like(weight)
                gradients[name] = weight.grad
        average_over_ranks(gradients, examples * ranks() / merged.examples)

    def share_statistics(self) -> None:
        """Give every rank the buffers of rank 0: the running statistics of its part of the batches."""
        if ranks() > 1:
            for buffer in self._network.buffers():
                dist.broadcast(buffer, 0)


def generator_seed(seed: int) -> int:
    """What to seed this rank's dropout with: on rank 0 the seed itself."""
    return seed if rank() == 0 else seed_of("rank", seed, rank())
