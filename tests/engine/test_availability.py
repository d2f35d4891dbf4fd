"""A host on which the kernels do not work: everything runs dense, and says why in one line."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from skeletal.engine import available
from skeletal.engine.codegen.threads import share
from skeletal.engine.host.layers import mismatch
from skeletal.engine.kernels.fused_batch_norm import shared_backward
from skeletal.engine.ops import calls

ASK = "from skeletal.engine import available; found = available(); print(bool(found)); print(found)"
TRAIN = """
import json, sys, warnings
import torch
import skeletal
from skeletal.engine.compiled import Compiled
from skeletal.harness.runs.doctor import findings
from skeletal.harness.training.engines import engine_for
from tests.cases import convnet, random_mask

model, x = convnet(), torch.randn(5, 3, 6, 6)
mask = skeletal.Mask(random_mask(model, 0.3))
said = []
warnings.showwarning = lambda message, *rest: said.append(str(message))
warnings.simplefilter("always")
fast = skeletal.compile(model, mask, x)
sparse = skeletal.compile(model, mask, x, path="sparse")
options = dict(device=torch.device("cpu"), example=lambda: x)
engines = [engine_for(model, mask, asked, **options).name for asked in ("auto", "sparse")]
skeleton = mask.attach(model)
off = 0.0
for network in (fast, sparse):
    optimizers = [torch.optim.SGD(one.parameters(), 0.1, momentum=0.9) for one in (network, model)]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for _ in range(3):
        losses = [one(x).square().mean() for one in (network, model)]
        off = max(off, abs(losses[0].item() - losses[1].item()))
        for loss, optimizer in zip(losses, optimizers):
            optimizer.zero_grad(), loss.backward(), optimizer.step()
    mask.check(network.to_dense())
    model.load_state_dict(state)
print(json.dumps({
    "said": said, "report": str(fast.report), "chosen": [fast.chosen, sparse.chosen], "engines": engines, "off": off,
    "doctor": findings()["machine"]["sparse engine"], "numba": "numba" in sys.modules,
}))
"""
BROKEN = {
    "raises": ("raise RuntimeError('this numba is too new\\nfor words')", "do not compile: RuntimeError: this numba"),
    "needs another numpy": ("raise ImportError('Numba needs NumPy 1')", "do not load: ImportError: Numba needs NumPy"),
    "is empty": ("", "do not load: ModuleNotFoundError: No module named 'numba."),
    "crashes": ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "ended in SIGSEGV"),
    "runs out of memory": ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "ended in SIGKILL"),
    "is ended by another": ("import os, signal; os.kill(os.getpid(), signal.SIGUSR1)", "ended in SIGUSR1"),
    "exits": ("import os; os._exit(3)", "its check failed: exit status 3"),
}  # fmt: skip


@pytest.fixture
def call(tmp_path):
    def run(code: str, numba: str) -> list[str]:
        (tmp_path / "numba").mkdir(exist_ok=True)
        source = tmp_path / "numba" / "__init__.py"
        if not source.exists() or source.read_text() != numba:
            source.write_text(numba)
        root = Path(__file__).parents[2]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(tmp_path), str(root / "src"), str(root)]),
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
        }
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    return run


@pytest.mark.parametrize("way", BROKEN)
def test_says_what_is_wrong_in_one_line(call, way, tmp_path):
    code, reason = BROKEN[way]
    found = call(ASK, code)
    assert found[0] == "False" and len(found) == 2
    assert reason in found[1] and "numba" in found[1]
    # Who was killed, or ended without an answer, may have a better day.
    lasts = way not in ("runs out of memory", "is ended by another", "exits")
    assert len(list(tmp_path.glob("cache/skeletal/engine-*.json"))) == lasts


def test_is_checked_once(call, tmp_path):
    count = f"open({str(tmp_path / 'calls')!r}, 'a').write('x'); raise ImportError('no')"
    assert call(ASK, count) == call(ASK, count)
    assert (tmp_path / "calls").read_text() == "x"
    call(ASK, f"# another numba\n{count}")
    assert (tmp_path / "calls").read_text() == "xx"


def test_processes_that_start_together_check_once(call, tmp_path):
    """As ranks and workers do on a new machine; each would compile all kernels."""
    slow = f"import time; open({str(tmp_path / 'calls')!r}, 'a').write('x'); time.sleep(1); raise ImportError('no')"
    call("", slow)
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(call, [ASK] * 3, [slow] * 3))
    assert found[0][0] == "False" and found[0] == found[1] == found[2]
    assert (tmp_path / "calls").read_text() == "x"


def test_ctrl_c_of_a_terminal_does_not_reach_the_check(call, tmp_path):
    """It goes to all processes of the foreground, of which the run knows what to do with it."""
    code = f"""
import os, signal
open({str(tmp_path / "group")!r}, "w").write(str(os.getpgrp()))
raise ImportError("no")
"""
    call(f"import os; open({str(tmp_path / 'ours')!r}, 'w').write(str(os.getpgrp()))\n{ASK}", code)
    assert (tmp_path / "ours").read_text() != (tmp_path / "group").read_text()


def test_both_types_are_checked_at_the_same_time(call, tmp_path):
    """Each waits for the other; what becomes of one says nothing about the other."""
    code = f"""
import os, sys, time
from pathlib import Path
place, maps = Path({str(tmp_path)!r}), sys.argv[2]
with open(place / maps, "a") as file:
    file.write("x")
end = time.monotonic() + 60
while time.monotonic() < end and len([kind for kind in ("bfloat16", "float32") if (place / kind).exists()]) < 2:
    time.sleep(0.01)
if maps == "bfloat16":
    os.abort()
raise RuntimeError("this numba is too new" if time.monotonic() < end else "alone")
"""
    ask = "from skeletal.engine import available; print(*map(available, ('bfloat16', 'float32')), sep='\\n')"
    bfloat16, float32 = call(ask, code)
    assert "ended in SIGABRT" in bfloat16 and "this numba is too new" in float32
    assert [(tmp_path / maps).read_text() for maps in ("bfloat16", "float32")] == ["x", "x"]


def test_ctrl_c_ends_the_checks(call, tmp_path):
    code = f"""
import os, sys, time
from pathlib import Path
(Path({str(tmp_path)!r}) / sys.argv[2]).write_text(str(os.getpid()))
time.sleep(300)
"""
    asked = f"""
import os, signal, threading, time
from pathlib import Path
from skeletal.engine import available

files = [Path({str(tmp_path)!r}) / maps for maps in ("bfloat16", "float32")]

def interrupt():
    while not all(file.exists() and file.read_text() for file in files):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=interrupt).start()
try:
    available("bfloat16")
except KeyboardInterrupt:
    for file in files:
        try:
            os.kill(int(file.read_text()), 0)
        except ProcessLookupError:
            print("ended")
"""
    assert call(asked, code) == ["ended", "ended"]


def test_networks_work_without_the_engine(call):
    found = json.loads(call(TRAIN, BROKEN["raises"][0])[-1])
    assert found["off"] < 1e-6
    assert found["chosen"] == ["dense", "dense"] and found["engines"] == ["dense", "dense"]
    assert not found["numba"]
    for text in (*found["said"], found["report"], found["doctor"]):
        assert "this numba is too new" in text
    assert len(found["said"]) == 4 and all("\n" not in text for text in found["said"])


def test_works_here():
    assert available() and str(available()) == "available"
    assert mismatch(torch.float32) is None
    assert available("bfloat16")


@pytest.mark.parametrize("wrong", [float("nan"), 1.001], ids=["NaN", "a thousandth"])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_wrong_numbers_are_seen(monkeypatch, wrong, direction):
    def miscompiled(kernel, units, *arguments):
        share(kernel, units, *arguments)
        if (kernel is shared_backward) == (direction == "backward"):
            where = arguments[1][4 if direction == "backward" else 2]  # the gradient of x, or the output
            memory[where[0]].mul_(wrong)

    memory = {}
    empty = calls.arena.empty

    def remembering(shape, dtype):
        tensor = empty(shape, dtype)
        memory[tensor.data_ptr()] = tensor
        return tensor

    monkeypatch.setattr(calls.arena, "empty", remembering)
    monkeypatch.setattr(calls, "share", miscompiled)
    reason = mismatch(torch.float32)
    what = "convolution's gradient of its input" if direction == "backward" else "convolution is off"
    assert reason is not None and what in reason
