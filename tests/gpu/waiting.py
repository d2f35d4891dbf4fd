"""What makes a host that waits for the GPU an error."""

import warnings
from collections.abc import Generator
from contextlib import contextmanager

import torch


@contextmanager
def waiting_is_an_error() -> Generator[None]:
    """Inside, whatever has to wait for the GPU raises; torch warns that it may not see all of it."""
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)
