"""What goes in and out of a compiled network as a state: copies written to, types, extra states, masked biases."""

import copy
import inspect
import pickle

import pytest
import torch
from torch import nn

import skeletal

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
NAMES = ["0.weight", "0.bias", "2.weight", "2.bias"]


def network(middle=nn.ReLU):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), middle(), nn.Linear(16, 4))


def pair(middle=nn.ReLU, prunable=None, path="sparse"):
    """The network compiled, and the masked one."""
    model = network(middle)
    mask = skeletal.prune(model, density=0.5, method="random", seed=1, prunable=prunable)
    fast = skeletal.compile(model, mask, X, path=path)
    mask.attach(model)
    return fast, model, mask


def step(net, optimizer):
    optimizer.zero_grad()
    net(X.to(next(net.parameters()).dtype)).exp().sum().mul(0.01).backward()
    optimizer.step()


def sgd(net):
    return torch.optim.SGD(net.parameters(), lr=0.1)


@pytest.mark.parametrize("path", ["sparse", "dense"])
def test_a_masked_bias_of_an_exchanged_layer_is_held(path):
    fast, slow, mask = pair(prunable=NAMES, path=path)
    for net in (fast, copy.deepcopy(fast), slow):
        optimizer = sgd(net)
        for _ in range(3):
            step(net, optimizer)
        mask.check(net.to_dense() if net is not slow else net)
    torch.testing.assert_close(fast.state_dict(), slow.state_dict())


def test_what_was_written_to_a_copy_that_is_gone_counts():
    """As by YOLO's average of weights, and by functions that load part of a state."""
    fast, slow, _ = pair()
    for net in (fast, slow):
        for value in net.state_dict().values():
            value *= 0.5
        own = copy.deepcopy(net).state_dict()
        torch.testing.assert_close(own, net.state_dict())
        del own
        net.state_dict()["0.bias"][3] = 7.0
    torch.testing.assert_close(fast(X), slow(X))
    torch.testing.assert_close(fast.state_dict(), slow.state_dict())
    assert not fast.handed.any


@pytest.mark.parametrize("fused", [False, True])  # which counts no writes
def test_a_copy_from_before_training_does_not_undo_it(fused):
    fast, _, _ = pair()
    old = fast.state_dict()
    step(fast, torch.optim.Adam(fast.parameters(), lr=0.1, fused=fused))
    trained = {name: value.clone() for name, value in fast.state_dict().items()}
    old["2.bias"][0] = 5.0
    with pytest.raises(RuntimeError, match=r"`2\.bias` was written to in a copy .* out of date"):
        fast(X)
    torch.testing.assert_close(fast.state_dict(), trained, rtol=0, atol=0)
    fast.state_dict()["2.bias"][0] = 5.0
    assert fast.get_parameter("2.bias")[0] == 5


def test_two_copies_do_not_undo_each_other():
    fast, _, _ = pair()
    one, other = fast.state_dict(), fast.state_dict()
    one["2.bias"][0] = 5.0
    fast(X)
    other["2.bias"][1] = 6.0
    with pytest.raises(RuntimeError, match="out of date"):
        fast(X)
    one["2.bias"][1] = 6.0
    assert fast.state_dict()["2.bias"][:2].tolist() == [5, 6]


def test_what_a_partial_state_does_not_name_stays():
    fast, slow, _ = pair()
    for net in (fast, slow):
        step(net, sgd(net))
        net.load_state_dict({"2.bias": torch.ones(4)}, strict=False)
    torch.testing.assert_close(fast.state_dict(), slow.state_dict())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_states_dense_networks_and_pickles_have_the_type_of_now(dtype):
    fast, slow, _ = pair()
    fast, slow = fast.to(dtype), slow.to(dtype)
    again = pickle.loads(pickle.dumps(fast))
    for net in (fast, again):
        assert {value.dtype for value in net.state_dict().values()} == {dtype}
        assert torch.equal(net.to_dense()(X.to(dtype)), slow(X.to(dtype)))
        torch.testing.assert_close(net.state_dict(), slow.state_dict(), rtol=0, atol=0)
    assert [value.shape for value in again.parameters()] == [value.shape for value in fast.parameters()]
    assert again.chosen == fast.chosen


def test_a_write_rounds_nothing_after_a_change_of_type():
    fast, slow, _ = pair()
    fast, slow = fast.double(), slow.double()
    for net in (fast, slow):
        step(net, sgd(net))
        net.state_dict()["2.bias"].add_(1e-12)
    torch.testing.assert_close(fast.state_dict(), slow.state_dict(), rtol=1e-14, atol=1e-14)
    again = pickle.loads(pickle.dumps(fast))
    torch.testing.assert_close(again(X.double()), fast(X.double()), rtol=0, atol=0)
    again.use("auto")  # runs the example


def test_states_in_inference_mode():
    fast, _, _ = pair()
    with torch.inference_mode():
        state, dense = fast.state_dict(), fast.to_dense()
        state["2.bias"].add_(1)
        fast.load_state_dict(fast.state_dict())
    for net in (fast, dense, copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert not any(value.is_inference() for value in net.state_dict().values())
        net(X).sum().backward()
    assert torch.equal(fast.to_dense()[2].bias, dense[2].bias + 1)


def test_an_example_made_in_inference_mode():
    with torch.inference_mode():
        batch = torch.randn(4, 6)
        assert skeletal.compile(network(), None, batch).report.steps


class Counts(nn.Module):
    """Kept whole, as it writes to an attribute."""

    def __init__(self):
        super().__init__()
        self.seen = 0

    def forward(self, x):
        if self.training:
            self.seen += 1
        return x

    def get_extra_state(self):
        return torch.tensor(self.seen)

    def set_extra_state(self, state):
        self.seen = int(state)


class Notes(nn.Module):
    """Reads an extra state that is no tensor, which a graph would have as it was when it was traced."""

    def __init__(self):
        super().__init__()
        self.notes = {"seen": 1}

    def forward(self, x):
        return x / self.notes["seen"]

    def get_extra_state(self):
        return self.notes

    def set_extra_state(self, state):
        self.notes = state


@pytest.mark.parametrize(("middle", "extra"), [(Counts, torch.tensor(5)), (Notes, {"seen": 5})])
def test_extra_states_go_both_ways(middle, extra):
    fast, slow, _ = pair(middle)
    small = skeletal.compact(network(middle), fast.mask, X)
    state = {**slow.state_dict(), "1._extra_state": extra}
    assert str(fast.load_state_dict(state)) == "<All keys matched successfully>"
    small.load_dense(state)
    fast.state_dict()["2.bias"].add_(1)
    for found in (fast.state_dict(), pickle.loads(pickle.dumps(fast)).state_dict(), small.dense_state()):
        assert found["1._extra_state"] == extra
    if middle is Counts:
        fast(X), small.model(X)
        assert fast.state_dict()["1._extra_state"] == small.dense_state()["1._extra_state"] == 6
    else:
        whole = small.to_dense().eval()
        assert whole[1].notes == extra
        torch.testing.assert_close(small.model.eval()(X), whole(X))
        torch.testing.assert_close(fast.eval()(X), fast.to_dense().eval()(X))
    del state["1._extra_state"]
    assert fast.load_state_dict(state, strict=False).missing_keys == ["1._extra_state"]


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 2)

    def forward(self, pixels, labels=None):
        return self.layer(pixels)


def test_code_that_asks_finds_the_forward_pass_of_the_original():
    fast = skeletal.compile(Named(), None, {"pixels": X}, path="dense")
    for net in (fast, copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert list(inspect.signature(net.forward).parameters) == ["pixels", "labels"]
        assert list(inspect.signature(type(net).forward).parameters) == ["self", "pixels", "labels"]
        assert type(net).__name__ == "Compiled"
        assert net(pixels=X).shape == (4, 2)


def test_torchs_distributed_checkpoints_go_both_ways_in_a_module_that_holds_the_network():
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    found = []
    for _ in range(2):
        net = nn.Sequential(pair()[0])
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
        if not found:
            step(net, optimizer)
            states = get_state_dict(net, optimizer)
        else:
            set_state_dict(net, optimizer, model_state_dict=states[0], optim_state_dict=states[1])
        found.append((net.state_dict(), [optimizer.state[weight] for weight in net.parameters()]))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)
    assert len(found[0][1][0]) == 3
