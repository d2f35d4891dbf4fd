"""Compact and compiled networks on a GPU."""

import pytest
import torch
from torch import nn

import skeletal
from skeletal.harness.models import create
from tests.cases import random_mask as drawn

X = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("name", ["vgg11-cifar", "resnet20-cifar"])
def test_a_compact_network_equals_its_masked_one(name):
    model = create(name, num_classes=10).double().cuda()
    mask = skeletal.Mask(drawn(model, 0.02))
    mask.attach(model)
    small = skeletal.compact(model, mask, X.cuda()).model
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    assert next(small.parameters()).is_cuda
    for network in (model, small):
        network.train()
        nn.functional.cross_entropy(network(X.cuda()), torch.arange(4, device="cuda")).backward()
        network.eval()
    torch.testing.assert_close(small(X.cuda()), model(X.cuda()), rtol=1e-9, atol=1e-10)


def test_amp_through_a_compact_network():
    model = create("vgg11-cifar", num_classes=10).cuda()
    mask = skeletal.Mask(drawn(model, 0.02))
    mask.attach(model)
    small = skeletal.compact(model, mask, X.float().cuda()).model
    with torch.autocast("cuda", torch.bfloat16):
        loss = small(X.float().cuda()).float().square().mean()
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in small.parameters() if p.grad is not None)


@pytest.mark.parametrize("path", ["auto", "dense"])
def test_a_compiled_network_computes_densely_and_equally(path):
    model = create("resnet20-cifar", num_classes=10).double().cuda().eval()
    mask = skeletal.Mask(drawn(model, 0.02))
    mask.attach(model)
    fast = skeletal.compile(model, mask, X.cuda(), path=path)
    torch.testing.assert_close(fast(X.cuda()), model(X.cuda()), rtol=1e-9, atol=1e-10)
    mask.check(fast.to_dense())


def test_sparse_kernels_are_for_cpus_and_say_so():
    model = create("resnet20-cifar", num_classes=10).cuda()
    with pytest.raises(ValueError, match=r"on the CPU, not torch\.float32 on cuda"):
        skeletal.compile(model, skeletal.Mask(drawn(model, 0.02)), X.float().cuda(), path="sparse")


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # torch's compiler, by itself
def test_for_a_gpu_widths_are_multiples_channels_last_and_torch_compile_goes_on_top():
    model = create("vgg11-cifar", num_classes=10).double().cuda()
    mask = skeletal.Mask(drawn(model, 0.002))
    fast = skeletal.compile(model, mask, X.cuda())
    assert "multiply-adds are left" in str(fast.report) and fast.chosen == "dense, channels last"
    convolutions = [module for module in fast.network.modules() if isinstance(module, nn.Conv2d)]
    assert all(module.out_channels % 8 == 0 for module in convolutions)
    assert all(module.weight.is_contiguous(memory_format=torch.channels_last) for module in convolutions)
    mask.attach(model)
    compiled = torch.compile(fast, fullgraph=True)
    assert compiled
    for network in (model, compiled):
        network.train()
        optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(X.cuda()), torch.arange(4, device="cuda")).backward()
            optimizer.step()
        network.eval()
    mask.check(fast)
    with torch.no_grad():
        torch.testing.assert_close(compiled(X.cuda()), model(X.cuda()), rtol=1e-8, atol=1e-9)


def test_autocast_of_inputs_in_bfloat16():
    model = create("vgg11-cifar", num_classes=10).cuda().eval()
    fast = skeletal.compile(model, skeletal.Mask(drawn(model, 0.02)), X.float().cuda())
    assert torch.isfinite(fast(X.bfloat16().cuda())).all()
