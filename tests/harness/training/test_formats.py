"""bfloat16 and channels last reach what they should, and stay there."""

import signal

import pytest
import torch

from skeletal.harness.config import Training
from skeletal.harness.console.interrupt import Interrupted
from tests.harness.training.blobs import TRAINING, blobs, convnet, folder, mlp, run, same


def test_bf16_and_float32_in_one_process_whatever_the_caller_uses():
    from accelerate import Accelerator

    callers = Accelerator(cpu=True)
    seen = []
    for bf16 in (False, True, False):
        model = mlp()
        hook = model[0].register_forward_hook(lambda _, __, out: seen.append(out.dtype))
        result = run(model, blobs(), Training(**{**vars(TRAINING), "bf16": bf16}))
        hook.remove()
        assert result.test.top1 > 60
        assert set(seen) == {torch.bfloat16 if bf16 else torch.float32}
        assert all(p.dtype == torch.float32 for p in model.parameters())
        assert "forward" not in vars(model)  # nothing of accelerate's stays behind
        seen.clear()
    assert callers.mixed_precision == "no" and callers.device.type == "cpu"


def test_channels_last_reaches_weights_images_and_resumed_momentum(tmp_path):
    training = Training(**{**vars(TRAINING), "channels_last": True, "test_every": 2})
    model, place = convnet(), folder(tmp_path)
    parameters = list(model.parameters())
    layouts = []
    model[0].register_forward_pre_hook(
        lambda _, x: layouts.append(x[0].is_contiguous(memory_format=torch.channels_last))
    )
    data = blobs((3, 6, 6), before={(1, 1): lambda: signal.raise_signal(signal.SIGINT)})
    with pytest.raises(Interrupted):
        run(model, data, training, folder=place)
    run(model, data, training, folder=place)
    assert all(layouts)
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert ["test_top1" in row for row in place.metrics()] == [False, True, True]

    straight = convnet()
    run(straight, blobs((3, 6, 6)), training)
    assert same(dict(straight.state_dict()), dict(model.state_dict()))
