"""A skeleton sharded over two gloo processes by FSDP2, against the same training in one process. In float64."""

import copy

import pytest
import torch
from torch import nn

import skeletal
from skeletal.core.errors import MaskError
from skeletal.core.model.shards import is_sharded, local, part_like, whole
from tests.ranks import in_ranks, outcome


def net():
    torch.manual_seed(0)  # 7 and 5 rows: parts of different sizes
    return nn.Sequential(
        nn.Flatten(), nn.Linear(12, 7), nn.ReLU(), nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 3)
    ).double()  # fmt: skip


def batches():
    g = torch.Generator().manual_seed(1)
    return [(torch.randn(8, 12, generator=g).double(), torch.randint(3, (8,), generator=g)) for _ in range(6)]


def train(model, optimizer, part=slice(None), after_backward=lambda: None):
    for x, y in batches():
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[part]), y[part]).backward()
        after_backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()


def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)


def find():
    return skeletal.prune(net(), batches(), density=0.3, steps=3, on_collapse="keep")


def work(rank, _):
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    part = slice(rank, None, 2)
    model = net()
    mask = skeletal.prune(
        model, [(x[part], y[part]) for x, y in batches()], density=0.3, steps=3, on_collapse="keep"
    )  # fmt: skip
    mesh = init_device_mesh("cpu", (2,))
    for layer in (model[1], model[3], model[5], model):
        fully_shard(layer, mesh=mesh)
    skeleton = mask.attach(model)
    optimizer = adamw(model)
    pruned_gradients = []

    def look():
        pruned_gradients.append(max(float(whole(model.get_parameter(n).grad)[~k].abs().max()) for n, k in mask.items()))

    train(model, optimizer, part, look)
    mask.check(model)
    full = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    found = {
        "full": dict(full),
        "mask": dict(mask),
        "pruned gradients": pruned_gradients,
        "rows here": local(model[1].weight).shape[0],
        "sharded": is_sharded(model[1].weight),
        "prune": outcome(find_on, model),
    }
    model.load_state_dict({name: torch.ones_like(value) for name, value in model.state_dict().items()})
    found["loaded"] = outcome(mask.check, model)
    for value in optimizer.state[model[3].weight].values():
        if value.dim():
            local(value).fill_(1.0)
    again = mask.attach(model, optimizer)
    found["momentum"] = whole(optimizer.state[model[3].weight]["exp_avg"])
    again.detach()
    skeleton.detach()
    with torch.no_grad():
        local(model[5].weight).fill_(1.0)
    found["moved"] = outcome(mask.check, model)
    return found


def find_on(model):
    skeletal.prune(model, batches(), density=0.3)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return in_ranks(work, tmp_path_factory.mktemp("ranks"))


def test_sharded_training_is_that_of_one_process(found):
    mask = find()
    model = net()
    expected = copy.deepcopy(model)
    mask.attach(expected)
    train(expected, adamw(expected))
    assert found[0]["sharded"] and [rank["rows here"] for rank in found] == [4, 3]
    for rank in found:
        assert all(torch.equal(rank["mask"][name], keep) for name, keep in mask.items())
        for name, value in rank["full"].items():
            torch.testing.assert_close(value, expected.state_dict()[name])
    model.load_state_dict(found[0]["full"])
    mask.check(model)
    assert (model[3].weight != net()[3].weight).any()


def test_pruned_gradients_are_zero_in_every_part(found):
    assert all(rank["pruned gradients"] == [0.0] * 6 for rank in found)


def test_loaded_weights_and_old_momentum_are_zeroed(found):
    for rank in found:
        assert rank["loaded"][0] == "nothing"
        assert torch.equal(rank["momentum"].bool(), rank["mask"]["3.weight"])


def test_what_moved_is_found_on_every_rank(found):
    for rank in found:
        kind, message, _ = rank["moved"]
        assert kind == MaskError.__name__ and message.startswith("5.weight: ")


def test_pruning_a_sharded_model_is_refused(found):
    for rank in found:
        kind, message, _ = rank["prune"]
        assert kind == "ValueError" and "1.weight is sharded already: prune first" in message


def test_an_ordinary_tensor_is_its_own_part():
    weight = nn.Parameter(torch.ones(2))
    assert local(weight) is weight and whole(weight) is weight and not is_sharded(weight)
    where = torch.ones(2, dtype=torch.bool)
    assert part_like(where, weight) is where
