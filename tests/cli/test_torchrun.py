"""`torchrun -m skeletal ...`: one run on two processes, as a person starts and stops it."""

import json
import os
import signal
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "skeletal"]
ALONE = [sys.executable, "-m", "skeletal"]
EPOCHS = 60  # time enough to stop it in between
SECONDS = 300

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with Fashion-MNIST of a few noisy pictures."""
    root = tmp_path_factory.mktemp("torchrun")
    random = np.random.default_rng(0)
    classes = random.integers(0, 256, (10, 28, 28))
    for part, count in (("train", 90), ("t10k", 31)):
        labels = (np.arange(count) % 10).astype(np.uint8)
        images = ((classes[labels] + random.integers(0, 200, (count, 28, 28))) // 2).astype(np.uint8)
        header = struct.pack(">HBB3I", 0, 8, 3, count, 28, 28)
        (root / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        (root / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">HBBI", 0, 8, 1, count) + labels.tobytes())
    return root


def options(place, out):
    return [
        "run", "--model", "lenet5", "--data", "fashion-mnist", "--data-dir", str(place), "--device", "cpu",
        "--method", "snip", "--density", "0.3", "--epochs", str(EPOCHS), "--batch-size", "20", "--lr", "0.01",
        "--prune-batch-size", "31", "--engine", "dense", "--out", str(place / out), "--json",
    ]  # fmt: skip


def call(command):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=environment)


def result(done):
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # printed once, by rank 0


def weights(found):
    return load_file(f"{found['folder']}/model.safetensors")


@pytest.fixture(scope="module")
def together(place):
    """A run on two processes that nothing disturbs."""
    return result(call(TORCHRUN + options(place, "two")))


def test_a_run_is_that_of_one_process_and_can_be_evaluated(place, together):
    alone = result(call(ALONE + options(place, "one")))
    assert together["test"]["loss"] == pytest.approx(alone["test"]["loss"], rel=1e-4)
    torch.testing.assert_close(weights(together), weights(alone), rtol=1e-4, atol=1e-6)
    scores = result(
        call([*TORCHRUN, "eval", together["folder"], "--data-dir", str(place), "--device", "cpu", "--json"])
    )
    assert scores == together["test"] | {"loss": pytest.approx(together["test"]["loss"])}


def test_ctrl_c_stops_all_processes_and_the_run_goes_on_to_the_same_bits(place, together):
    command = TORCHRUN + options(place, "cut")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    deadline = time.monotonic() + SECONDS
    while not list((place / "cut").glob("*/metrics.jsonl")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=SECONDS)
    assert told.count("stopped after epoch") == 1 and "torchrun --nproc-per-node 2 -m skeletal run" in told
    assert not list((place / "cut").glob("*/result.json"))
    resumed = result(call(command))
    assert all(torch.equal(value, weights(together)[name]) for name, value in weights(resumed).items())


def test_what_runs_in_one_process_says_so(cli, monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2"}.items():  # as torchrun sets them
        monkeypatch.setenv(name, value)
    done = cli("doctor")
    assert done.status != 0
    assert "doctor runs in one process: torchrun is for run, prune, train and eval" in done.err
