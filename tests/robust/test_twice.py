"""The same command, started while it is already at work."""

import threading
from pathlib import Path

from skeletal.harness.config import Pruning, Setup, Training, resolve
from skeletal.harness.runs import experiment
from skeletal.harness.store import run_lock
from tests.cli.conftest import cli  # noqa: F401 (a fixture)

COMMAND = ["run", "--method", "random", "--epochs", "1", "--batch-size", "512", "--engine", "dense"]


def test_the_command_waits_if_asked(cli, monkeypatch):  # noqa: F811
    pruning = resolve(Pruning(method="random"), "quick")
    training = resolve(Training(epochs=1, batch_size=512, engine="dense"), "quick")
    folder = experiment.run_folder(Setup(), pruning, training, root=Path("runs").absolute())
    held, let_go = threading.Event(), threading.Event()

    def other() -> None:
        with folder.claim():
            held.set()
            let_go.wait(60)

    thread = threading.Thread(target=other)
    thread.start()
    held.wait(60)
    refused = cli(*COMMAND)
    assert refused.status == 1 and "is busy" in refused.err and "--wait" in refused.err
    assert not folder.path.exists() and folder.running

    holder = run_lock._holder
    monkeypatch.setattr(run_lock, "_holder", lambda lock: let_go.set() or holder(lock))  # asked once it has to wait
    waited = cli(*COMMAND, "--wait")
    thread.join()
    assert waited.status == 0 and "waiting for it to end" in waited.err
    assert folder.finished and not folder.running
