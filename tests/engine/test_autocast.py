"""Compiled networks under autocast: what is bfloat16 and what is not, and training as in float32."""

import copy

import pytest
import torch
from torch.nn import functional as F

import skeletal
from skeletal.engine.modules.blocked import ToBlocks
from skeletal.engine.modules.layers import Sparse
from tests.cases import Tokens, convnet, images, mlp, random_mask, tokens
from tests.engine.half import HALF, autocast, nothing_remembered
from tests.engine.networks import NETS, Flattened, made

__all__ = ["nothing_remembered"]


def train(network, batches, optimizer, half=True):
    losses = []
    for x, y in batches:
        optimizer.zero_grad()
        with torch.autocast("cpu", HALF, enabled=half):
            loss = F.cross_entropy(network(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def compiled(**options):
    torch.manual_seed(0)
    model = convnet()
    mask = skeletal.Mask(random_mask(model, 0.4, seed=0))
    batches = images(4, seed=0)
    return skeletal.compile(model, mask, batches[0], **options).train(), mask, batches


def sgd(network):
    return torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)


def test_trains_as_in_float32_with_parameters_in_float32():
    losses = []
    for half in (True, False):
        fast, mask, batches = compiled(path="sparse")
        optimizer = sgd(fast)
        losses.append(train(fast, batches * 3, optimizer, half))
        mask.check(fast)
        assert all(p.dtype == p.grad.dtype == torch.float32 for p in fast.parameters())
        assert all(buffer.dtype in (torch.float32, torch.int64) for buffer in fast.buffers())
        assert all(s["momentum_buffer"].dtype == torch.float32 for s in optimizer.state.values())
    assert losses[0] == pytest.approx(losses[1], rel=0.02) and losses[0] != losses[1]


def test_maps_are_half_only_under_autocast():
    fast, _, batches = compiled(path="sparse")
    seen = []
    for module in fast.modules():
        if isinstance(module, ToBlocks):
            module.register_forward_hook(lambda *arguments: seen.append(arguments[2].storage.dtype))
    x = batches[0][0]
    outputs = [fast.eval()(x)]
    with autocast():
        outputs.append(fast(x))
    outputs.append(fast(x.to(HALF)))
    with torch.autocast("cpu", torch.float16):
        fast(x)
    assert seen == [torch.float32, HALF, HALF, torch.float32]
    assert [output.dtype for output in outputs] == [torch.float32, HALF, HALF]
    assert torch.equal(outputs[1], outputs[2]) or torch.allclose(outputs[1], outputs[2], rtol=0.05, atol=0.02)


def test_float64_stays_float64_under_autocast():
    model, mask = made(NETS[0])
    x = torch.randn(3, 3, 6, 6, dtype=torch.float64)
    fast = skeletal.compile(model, mask, x, path="sparse").eval()
    with autocast():
        out = fast(x)
    assert out.dtype == torch.float64 and torch.equal(out, fast(x))


@pytest.mark.parametrize("examples", [1, 31, 32, 33])
def test_other_batches_than_the_example(examples):
    model, mask = made(NETS[0])
    fast = skeletal.compile(model.float(), mask, torch.randn(3, 3, 6, 6), path="sparse").eval()
    x = torch.randn(examples, 3, 8, 5, generator=torch.Generator().manual_seed(0))
    dense = fast.to_dense().eval()
    with torch.no_grad(), autocast():
        out = fast(x)
    expected = dense(x).detach()
    assert out.dtype == HALF and float((out - expected).norm() / expected.norm()) < 0.03


def test_copies_and_states_train_on_alike():
    fast, _, batches = compiled(path="sparse")
    train(fast, batches, sgd(fast))
    twin, other = copy.deepcopy(fast), compiled(path="sparse")[0]
    other.load_state_dict(fast.state_dict())
    losses = [train(network, batches, sgd(network)) for network in (fast, twin, other)]
    assert losses[0] == losses[1] == losses[2]
    assert fast.state_dict()["0.weight"].dtype == torch.float32


def test_a_network_that_cannot_be_traced():
    model = Tokens(tie=True)
    mask = skeletal.Mask(random_mask(model, 0.3))
    batch = tokens(1)[0]
    fast = skeletal.compile(model, mask, batch, path="sparse", dtype=HALF).eval()
    assert any(isinstance(module, Sparse) for module in fast.modules())
    with torch.no_grad(), autocast():
        half = fast(**batch)["loss"]
    with torch.no_grad():
        assert float(half) == pytest.approx(float(fast(**batch)["loss"]), rel=0.05)


def test_what_is_measured_under_autocast():
    """All ways, those on maps in float32 among them; `dtype` stands for the autocast around compile."""
    fast, _, batches = compiled(dtype=HALF)
    full = "sparse, float32 maps"
    assert full in fast.report.steps and fast.report.chosen == min(fast.report.steps, key=fast.report.steps.__getitem__)
    with autocast():
        assert compiled()[0].report == fast.report, "remembered"
    assert full not in compiled()[0].report.steps
    with autocast():
        assert full not in compiled(dtype=torch.float32)[0].report.steps
    paths = dict.fromkeys(fast.sparse_layers(), "sparse")
    outputs = []
    for way in ("sparse", full):
        fast.repeat(paths, way)
        assert all(layer.bf16 == (way == "sparse") for layer in fast.sparse_layers().values())
        with autocast(), torch.no_grad():
            outputs.append(fast.eval()(batches[0][0]))
    assert outputs[0].dtype == outputs[1].dtype == HALF and not torch.equal(*outputs)
    assert torch.allclose(*outputs, rtol=0.1, atol=0.05)


def test_other_types_are_refused():
    with pytest.raises(ValueError, match="float16"):
        compiled(dtype=torch.float16)


def test_a_flat_network():
    """Linear layers only, as well as between blocked maps and rows."""
    model = mlp()
    mask = skeletal.Mask(random_mask(model, 0.3))
    batches = images(2)
    fast = skeletal.compile(model, mask, batches[0], path="sparse").train()
    assert all(loss < 10 for loss in train(fast, batches, sgd(fast)))
    assert Flattened in NETS
