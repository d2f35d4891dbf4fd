"""Which device a name means, and how to compute there."""

import os
from collections.abc import Generator
from contextlib import contextmanager

import torch

from skeletal.core.model.cudnn import trying_all
from skeletal.engine.host.processor import processor


def pick_device(name: str) -> torch.device:
    """`auto` is the first of CUDA, MPS and CPU that is available; anything else is torch's own name.

    With several processes on a machine (torchrun), each takes its own GPU for `auto` and `cuda`.

    Raises:
        ValueError: torch does not know the name, the device is not in this machine, or there are fewer GPUs than
            processes.

    """
    if name in ("auto", "cuda") and torch.cuda.is_available():
        gpu, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if gpu >= there:
            raise ValueError(f"process {gpu} of this machine has no GPU of its own, there are {there}: start {there}")
        return torch.device("cuda", gpu)
    if name == "auto":
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        return torch.zeros((), device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} is not usable here ({str(error).splitlines()[0]}); cpu always is") from None


def multiplies_bfloat16() -> bool:
    """Whether the CPU has instructions for products of bfloat16, so that computing in it pays."""
    (flags,) = processor("flags")[:1]
    return "avx512_bf16" in flags or "amx_bf16" in flags


@contextmanager
def tuned(device: torch.device) -> Generator[None]:
    """Let cuDNN try which convolution is fastest for each shape, unless determinism was asked for."""
    cudnn = torch.backends.cudnn
    free = device.type == "cuda" and not (cudnn.deterministic or torch.are_deterministic_algorithms_enabled())
    with trying_all(free or cudnn.benchmark):
        yield


@contextmanager
def own_stream(device: torch.device) -> Generator[None]:
    """Compute on a stream other than the default one, which allows no recording; on a CPU do nothing."""
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream(device)
    outside = torch.cuda.current_stream(device)
    stream.wait_stream(outside)
    try:
        with torch.cuda.stream(stream):
            yield
    finally:
        outside.wait_stream(stream)
