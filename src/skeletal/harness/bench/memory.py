"""How much memory a way of training holds at most, found in a fresh process."""

import gc
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from skeletal.harness.bench.setting import Setting
from skeletal.harness.stopwatch import reset_peak, resident

_STEPS = 2  # the first makes gradients and momentum, the second runs with them


def peak_memory(setting: Setting, mask: Path, contestant: str, threads: int) -> dict[str, int] | None:
    """Bytes that a contestant adds to a fresh process that has imported all it needs.

    Args:
        setting: the network and the batch.
        mask: its file.
        contestant: a key of `CONTESTANTS`.
        threads: for torch.

    Returns:
        `built`: what stays after the network is built, with the caller's own dense one gone. `peak`: the most that
        is held at once during two training steps, that included. None where the system does not tell (no /proc).

    Raises:
        ValueError: the process failed; its last line of errors.

    """
    if resident("VmHWM") is None:
        return None
    order = {"setting": asdict(setting), "mask": str(mask), "contestant": contestant, "threads": threads}
    command = [sys.executable, "-m", __name__]
    done = subprocess.run(command, input=json.dumps(order), capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise ValueError(f"measuring the memory of {contestant} failed: {last}; --no-memory leaves it out")
    return json.loads(done.stdout.strip().splitlines()[-1])


def _answer() -> None:
    order = json.loads(sys.stdin.read())
    import torch

    from skeletal.core.masks.mask import Mask
    from skeletal.core.model.denormals import flush_denormals
    from skeletal.harness.bench.contestants import CONTESTANTS

    torch.set_num_threads(order["threads"])
    setting, candidate = Setting(**order["setting"]), CONTESTANTS[order["contestant"]]
    inputs, targets = setting.batch()
    mask = Mask.load(order["mask"])
    with flush_denormals():
        before = resident("VmRSS") or 0
        contestant = candidate.build(setting.network(), mask, inputs, targets)
        gc.collect()
        built = resident("VmRSS") or 0
        reset_peak()
        for _ in range(_STEPS):
            contestant.train()
        print(json.dumps({"built": built - before, "peak": (resident("VmHWM") or 0) - before}))


if __name__ == "__main__":
    _answer()
