"""Max pools let every input of a window through, whoever wins."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import skeletal
from skeletal.core.diagnosis.diagnose import diagnose
from skeletal.core.diagnosis.pooling import AveragePools
from tests.cases import random_mask

POOLS = {
    "2d": (nn.MaxPool2d(2), (1, 2, 8, 8)),
    "1d": (nn.MaxPool1d(3, 1, padding=1), (1, 2, 9)),
    "3d": (nn.MaxPool3d((1, 2, 2)), (1, 2, 2, 4, 4)),
    "padded": (nn.MaxPool2d(3, stride=2, padding=1), (1, 2, 7, 7)),
    "to the last pixel": (nn.MaxPool2d(2, ceil_mode=True), (1, 2, 5, 5)),
    "adaptive": (nn.AdaptiveMaxPool2d(2), (1, 2, 5, 5)),
    "adaptive, 1d": (nn.AdaptiveMaxPool1d(1), (1, 2, 5)),
    "torch's function": (lambda x: torch.max_pool2d(x, [2, 2]), (1, 2, 4, 4)),
    "unbatched, by keywords": (lambda x: functional.max_pool2d(input=x, kernel_size=2, stride=None), (2, 4, 4)),
}


@pytest.mark.parametrize("name", POOLS)
def test_every_input_of_a_window_reaches_the_output(name):
    pool, shape = POOLS[name]
    x = torch.rand(shape, requires_grad=True)
    with AveragePools():
        y = pool(x)
    assert y.shape == pool(x).shape
    y.sum().backward()
    assert (x.grad > 0).all()
    ones = torch.ones(shape)
    with AveragePools():
        torch.testing.assert_close(pool(ones), torch.ones_like(y))  # padding is no input


def test_pools_with_gaps_and_those_asked_for_the_winner_stay_as_they_are():
    x = torch.rand(1, 2, 9, 9)
    for pool in (nn.MaxPool2d(2, dilation=3), nn.MaxPool2d(2, 1, return_indices=True)):
        with AveragePools():
            found = pool(x)
        torch.testing.assert_close(found, pool(x), rtol=0, atol=0)
    with AveragePools():
        values, places = functional.adaptive_max_pool2d(x, 3, return_indices=True)
        unpooled = nn.MaxUnpool2d(3)(values, places)
    assert torch.equal(values, functional.adaptive_max_pool2d(x, 3))
    torch.testing.assert_close(unpooled.sum(), values.sum())


@pytest.mark.parametrize("seed", range(3))
def test_how_many_weights_lie_on_a_path_does_not_depend_on_the_examples(seed):
    model = skeletal.models.create("vgg-mini", num_classes=10, in_channels=1, image_size=8, seed=0)
    mask = random_mask(model, 0.01, seed)
    counts = {
        sum(layer.effective for layer in diagnose(model, mask, torch.randn(n, 1, 8, 8)).layers) for n in (1, 8, 64)
    }

    # brute force: in a network of averages and ones, what the mask lets through has a gradient
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.MaxPool2d):
            model.set_submodule(name, nn.AvgPool2d(module.kernel_size, module.stride))
        elif isinstance(module, nn.BatchNorm2d):
            model.set_submodule(name, nn.Identity())
    model.double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(mask[name]) if name in mask else parameter.zero_()
    model(torch.ones(1, 1, 8, 8).double()).sum().backward()
    assert counts == {
        sum(int(parameter.grad.ne(0)[mask[name]].sum()) for name, parameter in model.named_parameters() if name in mask)
    }
