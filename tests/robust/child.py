"""A small run in a process of its own, which can be killed."""

import os
import signal
from pathlib import Path

from torch import nn

from skeletal.core.errors import BusyError
from tests.forked import server


def network(*_):
    """Convolutions, batch norm, dropout: weights, buffers and random numbers to lose."""
    import torch

    torch.manual_seed(5)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout(0.2),
        nn.Flatten(), nn.Linear(16 * 4 * 4, 10),
    )  # fmt: skip


def run(root: Path, engine: str, epochs: int = 3):
    """Prune and train that network on digits, in this process; the run's folder and result."""
    from unittest import mock

    from skeletal.harness.config import Pruning, Setup, Training, resolve
    from skeletal.harness.runs import experiment

    setup = Setup(device="cpu", workers=0)
    pruning = resolve(Pruning(method="force", density=0.2, steps=3), "quick")
    training = resolve(Training(epochs=epochs, batch_size=256, engine=engine), "quick")
    with mock.patch.object(experiment, "create_model", network):
        return experiment.run(setup, pruning, training, root=root, progress=False)


def start(root: Path, engine: str, step: int = 0, before: str = "", after: str = "", number: int = signal.SIGKILL):
    """A child at work on the run; give one of the three moments at which it sends itself the signal, or none.

    Args:
        root: the folder of run folders.
        engine: dense or sparse.
        step: after so many optimizer steps.
        before: when a file of this name is written, and not yet put in its place.
        after: when it has just been put there.
        number: the signal.

    """
    process = server.Process(target=_work, args=(root, engine, step, before, after, number))
    process.start()
    return process


def _work(root: Path, engine: str, step: int, before: str, after: str, number: int) -> None:
    import torch

    torch.set_num_threads(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what an interrupted run tells its user
    steps, replace, sgd_step = 0, os.replace, torch.optim.SGD.step

    def deadly_replace(draft, path):
        if Path(path).name == before:
            os.kill(os.getpid(), number)
        replace(draft, path)
        if Path(path).name == after:
            os.kill(os.getpid(), number)

    def deadly_step(*arguments, **options):
        nonlocal steps
        steps += 1
        outcome = sgd_step(*arguments, **options)
        if steps == step:
            os.kill(os.getpid(), number)
        return outcome

    os.replace, torch.optim.SGD.step = deadly_replace, deadly_step
    try:
        run(root, engine)
    except KeyboardInterrupt:
        os._exit(130)
    except BusyError:
        os._exit(75)
    os._exit(0)
