"""What `skeletal.compile` makes for a GPU, here on a CPU; and `torch.compile` on top of all that we make."""

import copy
import pickle

import pytest
import torch
from torch.nn import functional as F

import skeletal
from skeletal.engine import compile as engine
from skeletal.harness.models import create
from skeletal.harness.models.resnet import BasicBlock, resnet
from tests.cases import Tokens, convnet, images, random_mask, tokens

BACKENDS = ("eager", "aot_eager")


@pytest.fixture(autouse=True)
def nothing_compiled(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    torch._dynamo.reset()


def small_resnet(density=0.05):
    torch.manual_seed(0)
    model = resnet(BasicBlock, (1, 1), 12, num_classes=5, in_channels=3, image_size=8).double()
    batches = [(x.double(), y % 5) for x, y in images(4)]
    return model, skeletal.Mask(random_mask(model, density)), batches


def for_gpu(model, mask, batch, path="auto"):
    """What `compile` does with a model on a device without sparse kernels."""
    return engine._without_kernels(model, mask, batch, path)


def train(network, batches, optimizer):
    network.train()
    for x, y in batches:
        optimizer.zero_grad()
        F.cross_entropy(network(x), y).backward()
        optimizer.step()


def sgd(network):
    return torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)


def test_it_trains_as_the_masked_network():
    model, mask, batches = small_resnet()
    fast = for_gpu(model, mask, batches[0])
    masked = copy.deepcopy(model)
    mask.attach(masked)
    for network in (masked, fast):
        train(network, batches, sgd(network))
    mask.check(fast)
    for training in (True, False):
        outputs = [network.train(training)(batches[0][0]) for network in (masked, fast, fast.to_dense())]
        torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(outputs[2], outputs[0], rtol=1e-9, atol=1e-11)


def test_its_weights_are_dense_channels_last_and_of_even_widths():
    model, mask, batches = small_resnet()
    fast = for_gpu(model, mask, batches[0])
    assert not fast.sparse_layers() and fast.chosen == "dense, channels last"
    seen = []
    for name, module in fast.network.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            own = model.get_submodule(name).out_channels
            assert module.out_channels % 8 == 0 or module.out_channels == own
            assert module.weight.is_contiguous(memory_format=torch.channels_last)
            module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    fast(batches[0][0])
    assert len(seen) > 3 and all(x.is_contiguous(memory_format=torch.channels_last) for x in seen)


def test_its_report_says_what_it_would_gain():
    model, mask, batches = small_resnet()
    fast = for_gpu(model, mask, batches[0])
    before, after = skeletal.compact(model, mask, batches[0], multiple_of=8).report.macs
    text = str(fast.report)
    assert f"{after:,} of {before:,} multiply-adds are left ({100 * after / before:.1f}%)" in text
    assert "layers are narrower" in text and "multiples of 8" in text and "No time was measured" in text
    assert not fast.report.steps and not fast.report.layers


def test_a_network_that_cannot_be_traced_is_held_whole():
    model, batch = Tokens().eval(), tokens()[0]
    mask = skeletal.Mask(random_mask(model, 0.3))
    fast = for_gpu(model, mask, batch)
    masked = copy.deepcopy(model)
    mask.attach(masked)
    torch.testing.assert_close(fast(**batch)["logits"], masked(**batch)["logits"])


def test_the_path_is_dense_or_an_error():
    model, mask, batches = small_resnet()
    for path in ("auto", "dense"):
        fast = for_gpu(model, mask, batches[0], path)
        fast.use("auto")
        assert fast.chosen == "dense, channels last" and "multiply-adds are left" in str(fast.report)
    with pytest.raises(ValueError, match="sparse kernels have weights in float32 or float64 on the CPU"):
        for_gpu(model, mask, batches[0], "sparse")


def test_states_copies_and_pickles():
    model, mask, batches = small_resnet()
    fast = for_gpu(model, mask, batches[0])
    train(fast, batches, sgd(fast))
    state = fast.state_dict()
    assert {name: value.shape for name, value in state.items()} == {
        name: value.shape for name, value in model.state_dict().items()
    }
    other = for_gpu(model, mask, batches[0])
    assert str(other.load_state_dict(state)) == "<All keys matched successfully>"
    copies = [other, copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))]
    expected = fast.eval()(batches[0][0])
    for found in copies:
        assert found.chosen == fast.chosen and not found.sparse_layers()
        torch.testing.assert_close(found.eval()(batches[0][0]), expected, rtol=1e-12, atol=1e-12)
        train(found, batches, sgd(found))
        mask.check(found)


def compact_network(model, mask, batch):
    small = skeletal.compact(model, mask, batch, multiple_of=8)
    skeletal.Mask(small.mask).attach(small.model)
    return small.model


def copied_compact_network(model, mask, batch):
    return copy.deepcopy(compact_network(model, mask, batch))


def sparse(model, mask, batch):
    return skeletal.compile(model, mask, batch, path="sparse")


def dense(model, mask, batch):
    return skeletal.compile(model, mask, batch, path="dense")


MADE = (compact_network, copied_compact_network, for_gpu, sparse, dense)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("make", MADE, ids=lambda make: make.__name__)
def test_torch_compile_on_top(make, backend):
    model, mask, batches = small_resnet()
    plain = make(model, mask, batches[0])
    graph = make in (sparse, dense)  # kernels of ours run as they are
    compiled = torch.compile(make(model, mask, batches[0]), backend=backend, fullgraph=not graph)
    assert compiled  # a truth value, as of any module
    assert (compiled or None) is compiled
    for network in (plain, compiled):
        train(network, batches, sgd(network))
    for (name, one), other in zip(plain.named_parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-11, msg=name)
    x = batches[1][0][:5]  # another batch size, another mode
    torch.testing.assert_close(compiled.eval()(x), plain.eval()(x), rtol=1e-9, atol=1e-11)
    if make not in (compact_network, copied_compact_network):
        mask.check(compiled)


def test_torch_compile_holds_a_state_that_was_written_to():
    model, mask, batches = small_resnet()
    fast = for_gpu(model, mask, batches[0]).eval()
    compiled = torch.compile(fast, backend="eager")
    before = compiled(batches[0][0])
    state = fast.state_dict()
    last = [name for name in state if name.endswith("bias")][-1]
    state[last] += 1  # as averages of weights do
    torch.testing.assert_close(compiled(batches[0][0]), before + 1)


def test_inputs_in_bfloat16():
    model, mask, batches = small_resnet()
    fast = for_gpu(model.float(), mask, (batches[0][0].float(), batches[0][1])).eval()
    out = fast(batches[0][0].bfloat16())
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), fast(batches[0][0].float()), rtol=0.05, atol=0.05)


def test_compact_networks_have_a_length():
    model, batches = convnet(), images()
    small = skeletal.compact(model, random_mask(model, 0.3), batches[0]).model
    assert len(small) == len(list(small.modules())) == len(torch.compile(small, backend="eager"))


def test_vgg_as_a_whole_in_one_graph():
    model = create("vgg11-cifar", num_classes=10, seed=0)
    x = torch.randn(2, 3, 32, 32)
    mask = skeletal.Mask(random_mask(model, 0.01))
    fast = for_gpu(model, mask, x).eval()
    compiled = torch.compile(fast, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), fast(x))
