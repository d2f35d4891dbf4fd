"""Masks that move in loops that take gradients in their own way, freeze layers, or exchange the optimizer."""

import copy

import pytest
import torch
from torch import nn

import skeletal
from tests.cases import convnet, images
from tests.core.updates.test_update import RULES, STEPS, backward, begun, step


def test_gradients_that_come_without_a_backward_pass_are_refused():
    model, used, update = begun("rigl")
    x, y = images(1)[0]
    with pytest.raises(skeletal.MaskError, match=r"RigL needs gradients, and none has come to \.grad by a backward"):
        for _ in range(3):
            weights = list(model.parameters())
            gradients = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), weights)
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.grad = gradient
            used.step()
            update.step()


@pytest.mark.parametrize("first", ["hooks", "mask"])
def test_a_loop_that_steps_in_the_backward_pass(first):
    model = convnet()
    mask = skeletal.prune(model, density=0.2, method="random-erk")
    used = {weight: torch.optim.SGD([weight], 0.1) for weight in model.parameters()}

    def take(weight):
        used[weight].step()
        used[weight].zero_grad()

    for part in ("hooks", "mask") if first == "hooks" else ("mask", "hooks"):
        if part == "mask":
            skeleton = mask.attach(model)
        else:
            for weight in model.parameters():
                weight.register_post_accumulate_grad_hook(take)
    update = skeletal.MaskUpdate(skeleton, list(used.values()), skeletal.RigL(every=1), steps=2)
    backward(model, *images(1)[0])
    if first == "hooks":
        with pytest.raises(skeletal.MaskError, match=r"register hooks that clear \.grad after mask\.attach"):
            update.step()
    else:
        assert update.step() and update.mask != mask


def test_a_gradient_that_is_only_asked_for_throws_nothing_away():
    plain, asking = begun("rigl"), begun("rigl")
    for x, y in images(3):
        step(*plain, (x, y))
        model, used, update = asking
        used.zero_grad()
        backward(model, x, y)
        used.step()
        used.zero_grad()
        random = torch.get_rng_state()
        model.eval()  # as a look at the loss in between
        torch.autograd.grad(nn.functional.cross_entropy(model(x), y), list(model.parameters()))
        model.train()
        torch.set_rng_state(random)
        update.step()
    assert asking[2].mask == plain[2].mask != begun("rigl")[2].mask


@pytest.mark.parametrize("rule", RULES)
def test_a_frozen_layer_keeps_its_mask_and_counts_are_exact(rule):
    model, used, update = begun(rule)
    model[3].weight.requires_grad_(False)
    first, frozen = update.mask, model[3].weight.detach().clone()
    for batch in images(3):
        moved = step(model, used, update, batch)
    new = update.mask
    assert moved and torch.equal(new["3.weight"], first["3.weight"]) and torch.equal(model[3].weight, frozen)
    assert all(not torch.equal(new[name], first[name]) for name in ("0.weight", "8.weight"))
    if rule == "gradual":
        assert new.kept == RULES[rule].count(first.kept, first.total, 3, STEPS)
    else:
        assert all(int(new[name].sum()) == int(keep.sum()) for name, keep in first.items())


def test_gradual_pruning_says_that_frozen_layers_keep_too_much():
    model, used, update = begun("gradual")
    model[3].weight.requires_grad_(False)
    model[0].weight.requires_grad_(False)
    with pytest.raises(ValueError, match=r"frozen layers, which keep theirs, have \d+: unfreeze them"):
        for batch in images(4) * 3:
            step(model, used, update, batch)


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda weights: torch.optim.Rprop(weights, lr=0.01),
        lambda weights: torch.optim.Adagrad(weights, lr=0.1, initial_accumulator_value=0.5),
        lambda weights: torch.optim.Adagrad(weights, lr=0.1),
        lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9),
    ],
)
def test_the_first_step_of_a_weight_that_has_come_is_that_of_a_new_optimizer(optimizer):
    model = convnet()
    mask = skeletal.prune(model, density=0.2, method="random-erk")
    used = optimizer(model.parameters())
    update = skeletal.MaskUpdate(mask.attach(model), used, RULES["rigl"], steps=STEPS)
    *batches, last = images(4)
    for batch in batches:
        step(model, used, update, batch)
    fresh = copy.deepcopy(model)
    update.mask.attach(fresh)
    for network, its in ((model, used), (fresh, optimizer(fresh.parameters()))):
        its.zero_grad()
        backward(network, *last)
        its.step()
    for name, keep in update.mask.items():
        come = keep & ~mask[name]
        assert torch.equal(model.get_parameter(name)[come], fresh.get_parameter(name)[come])
    assert update.mask != mask


def test_an_optimizer_that_has_been_exchanged_is_noticed():
    model, _, update = begun("set")
    model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    other = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(ValueError, match=r"no optimizer given holds 0\.weight.* to a new MaskUpdate"):
        for batch in images(3):
            step(model, other, update, batch)


def test_lbfgs_goes_on_as_a_new_one_where_the_mask_has_moved():
    (x, y), found = images(1)[0], []
    for new in (True, False):
        model = convnet().eval()
        skeleton = skeletal.prune(model, density=0.3, method="random-erk").attach(model)
        used = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4)
        update = skeletal.MaskUpdate(skeleton, used, skeletal.SET(every=2), steps=4)
        for moves in (False, True, False):

            def loss(model=model, used=used):
                used.zero_grad()
                value = nn.functional.cross_entropy(model(x), y)
                value.backward()
                return value

            used.step(loss)
            assert used.state and update.step() == moves
            if moves and new:
                used = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4)
                update = skeletal.MaskUpdate(skeleton, used, skeletal.SET(every=2), steps=4)
        found.append(model.state_dict())
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
