"""An optimizer goes on with a compiled network only where all that it keeps can follow."""

import copy

import pytest
import torch
from torch import nn

import skeletal
from skeletal.engine.optimizer_state import carry_over
from tests.cases import images, mlp, random_mask

REFUSED = {
    "LBFGS": (torch.optim.LBFGS, "LBFGS cannot go on .* a list of parameters of its own"),
    "Adafactor": (torch.optim.Adafactor, "Adafactor cannot go on .* 'col_var', 'row_var'"),
}


def step(network, optimizer, batch):
    def loss():
        optimizer.zero_grad()
        value = nn.functional.cross_entropy(network(batch[0]), batch[1])
        value.backward()
        return value

    return optimizer.step(loss).item()


@pytest.mark.parametrize(("kind", "why"), REFUSED.values(), ids=REFUSED)
def test_optimizers_that_keep_more_than_a_number_for_each_entry_are_refused_and_stay_as_they_are(kind, why):
    model, (batch, *_) = mlp(), images()
    mask = skeletal.Mask(random_mask(model, 0.5))
    mask.attach(model)
    optimizer = kind(model.parameters(), lr=0.01)
    first = step(model, optimizer, batch)
    with pytest.raises(TypeError, match=why):
        carry_over(optimizer, model, skeletal.compile(model, mask, batch, path="sparse"))
    assert step(model, optimizer, batch) < first


@pytest.mark.parametrize("name", ["Adafactor", "Muon"])
def test_optimizers_that_treat_matrices_otherwise_than_vectors_are_refused(name):
    model, (batch, *_) = mlp(), images()
    mask = skeletal.Mask(random_mask(model, 0.5))
    fast = skeletal.compile(model, mask, batch, path="sparse")
    before, after = (fast, model) if name == "Adafactor" else (model, fast)
    trained = [weight for weight in before.parameters() if name == "Adafactor" or weight.dim() == 2]
    optimizer = getattr(torch.optim, name)(trained, lr=0.01)
    step(before, optimizer, batch)
    held, states = list(optimizer.param_groups[0]["params"]), copy.deepcopy([*optimizer.state.values()])
    with pytest.raises(TypeError, match=f"{name} cannot go on .* a weight's rows and columns"):
        carry_over(optimizer, before, after)
    assert [*map(id, optimizer.param_groups[0]["params"])] == [*map(id, held)]
    torch.testing.assert_close([*optimizer.state.values()], states)
    step(before, optimizer, batch)


@pytest.mark.parametrize(
    "kind", [torch.optim.Adam, torch.optim.ASGD, torch.optim.NAdam, torch.optim.Rprop, torch.optim.SGD]
)
def test_others_go_on_as_on_the_dense_network(kind):
    losses = []
    for compiled in (False, True):
        network, (batch, *_) = mlp().double(), images()
        batch = batch[0].double(), batch[1]
        mask = skeletal.Mask(random_mask(network, 0.5))
        mask.attach(network)
        optimizer = kind(network.parameters(), lr=0.01)
        found = [step(network, optimizer, batch)]
        if compiled:
            model, network = network, skeletal.compile(network, mask, batch, path="sparse")
            carry_over(optimizer, model, network)
        losses.append([*found, *(step(network, optimizer, batch) for _ in range(3))])
    assert losses[1] == pytest.approx(losses[0], rel=1e-9) and losses[0][-1] < losses[0][0]


@pytest.mark.parametrize(
    ("kind", "state", "settings"),
    [("Rprop", "step_size", {"lr": 0.02}), ("Adagrad", "sum", {"initial_accumulator_value": 0.3})],
)
def test_weights_of_dead_channels_come_back_as_the_optimizer_begins(kind, state, settings):
    model, (batch, *_) = mlp(), images()
    kept = random_mask(model, 0.5)
    kept["3.weight"][:, 3] = False  # nothing reads it
    optimizer = getattr(torch.optim, kind)(model.parameters(), **settings)
    fast = skeletal.compile(model, skeletal.Mask(kept), batch, path="sparse")
    carry_over(optimizer, model, fast)
    step(fast, optimizer, batch), step(fast, optimizer, batch)
    carry_over(optimizer, fast, model)
    found = optimizer.state[model[1].weight][state]
    torch.testing.assert_close(found[3], torch.full_like(found[3], *settings.values()))
    assert not torch.equal(found[4], found[3])


class Partly(nn.Module):
    """Parameters that only the loss uses, one of them under the mask, and a layer that nothing does."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.log_var = nn.Parameter(torch.zeros(()))
        self.unused = nn.Linear(16, 16)
        self.head = nn.Linear(16, 10)
        self.own = nn.Linear(10, 10, bias=False)
        self.first = nn.Linear(192, 16)

    def forward(self, x):
        return self.head(torch.relu(self.first(x.flatten(1))))


def test_parameters_that_the_forward_pass_does_not_use_go_on_as_on_the_dense_network():
    found = []
    for engine in (False, True):
        model, batches = Partly(), images(5)
        mask = skeletal.Mask(random_mask(model, 0.5))
        mask.attach(model)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        listed = [*map(id, optimizer.param_groups[0]["params"])]

        def train(network, model=model, optimizer=optimizer, batches=batches):
            optimizer.zero_grad()
            x, y = batches.pop()
            loss = nn.functional.cross_entropy(model.own(network(x)), y)
            (loss * torch.exp(-model.log_var) + model.log_var).backward()
            optimizer.step()

        train(model)
        network = model
        if engine:
            network = skeletal.compile(model, mask, images(1)[0][0], path="sparse")
            carry_over(optimizer, model, network)
        train(network), train(network)
        torch.testing.assert_close(network.state_dict()["own.weight"], model.own.weight, rtol=0, atol=0)
        if engine:
            model.load_state_dict(network.state_dict())
            carry_over(optimizer, network, model)
        train(model)
        assert [*map(id, optimizer.param_groups[0]["params"])] == listed
        mask.check(model)
        states = {name: dict(optimizer.state[weight]) for name, weight in model.named_parameters()}
        found.append((dict(model.state_dict()), states))
    assert found[0][0]["log_var"] != 0 and not found[0][1]["unused.weight"]
    torch.testing.assert_close(found[1], found[0])


def test_a_state_that_is_loaded_also_reaches_parameters_that_the_model_goes_on_training():
    model, (batch, *_) = Partly(), images()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    fast = skeletal.compile(model, skeletal.Mask(random_mask(model, 0.5)), batch, path="sparse")
    carry_over(optimizer, model, fast)
    fast.load_state_dict(fast.state_dict() | {"log_var": torch.tensor(0.5)})
    assert model.log_var == fast.state_dict()["log_var"] == 0.5
