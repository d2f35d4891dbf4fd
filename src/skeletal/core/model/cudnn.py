"""Whether cuDNN tries every algorithm for a convolution that is new to it, or takes the one it expects to be best."""

from collections.abc import Generator
from contextlib import contextmanager

import torch


@contextmanager
def trying_all(wanted: bool) -> Generator[None]:
    """Let cuDNN try all, which takes as long as dozens of passes for every new shape; or let it guess."""
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark
    cudnn.benchmark = wanted
    try:
        yield
    finally:
        cudnn.benchmark = before
