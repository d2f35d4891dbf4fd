"""An optimizer goes on with a compiled network only where all that it keeps can follow."""

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
