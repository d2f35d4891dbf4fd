"""Training on a GPU: zeros stay zero under every optimizer and AMP, runs stop, resume and are scored again."""

import json
import os
import signal
from dataclasses import replace

import pytest
import torch
from torch import nn

import skeletal
from skeletal.core.masks.mask import Mask
from skeletal.harness.config import Pruning, Setup, Training, resolve
from skeletal.harness.console.interrupt import Interrupted
from skeletal.harness.runs import experiment, review
from tests.cases import convnet, images
from tests.harness.training.blobs import TRAINING, blobs, folder, run
from tests.harness.training.blobs import convnet as small

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=5e-4),
    "sgd, fused": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=5e-4, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1),
    "adamw, fused": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1, fused=True),
    "adamw, capturable": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1, capturable=True),
}


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_pruned_weights_stay_exactly_zero(name, dtype):
    model, batches = convnet().cuda(), [(x.cuda(), y.cuda()) for x, y in images(4)]
    mask = skeletal.prune(model, batches, density=0.2, method="snip")
    optimizer = OPTIMIZERS[name](model.parameters())
    mask.attach(model, optimizer)
    scaler = torch.amp.GradScaler("cuda", enabled=dtype is torch.float16)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for x, y in batches:
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype or torch.float32, enabled=dtype is not None):
            loss = nn.functional.cross_entropy(model(x).float(), y)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
    mask.check(model)
    assert any(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("bf16", [False, True])
def test_a_run_from_end_to_end_and_its_evaluation(tmp_path, bf16):
    setup, pruning = Setup(device="cuda"), resolve(Pruning(density=0.2, steps=5), "quick")
    training = resolve(Training(epochs=6, lr=0.05, bf16=bf16, channels_last=bf16), "quick")
    folder, result = experiment.run(setup, pruning, training, root=tmp_path, progress=False)
    assert result["engine"] == "dense" and result["test"]["top1"] > 40
    assert "gpus" in json.loads((folder.path / "environment.json").read_text())
    mask = Mask.load(folder.path / "mask.safetensors")
    assert mask.kept == round(0.2 * mask.total)
    assert review.evaluate_run(folder.path, device="cuda").top1 == pytest.approx(result["test"]["top1"])
    on_cpu = review.evaluate_run(folder.path, device="cpu", engine="dense")
    assert on_cpu.top1 == pytest.approx(result["test"]["top1"], abs=1.0)


def test_a_stopped_run_goes_on(tmp_path):
    whole, stopped = small(), small()
    shorter = replace(TRAINING, epochs=2)
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, benchmark=False, allow_tf32=False):
        run(whole, blobs((3, 8, 8)), shorter, device="cuda")
        place = folder(tmp_path)
        halting = blobs((3, 8, 8), before={(1, 2): lambda: os.kill(os.getpid(), signal.SIGINT)})
        with pytest.raises(Interrupted):
            run(stopped, halting, shorter, device="cuda", folder=place)
        again = small()
        run(again, blobs((3, 8, 8)), shorter, device="cuda", folder=place)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, rtol=1e-4, atol=1e-5)
