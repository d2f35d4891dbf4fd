"""Masks that move in a loop of one's own: exact counts, exact gradients, exact optimizer state, exact resuming."""

import copy
import warnings
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad

import skeletal
from skeletal.core.updates.rule import Rule
from tests.cases import convnet, images

RULES = {
    "set": skeletal.SET(every=3),
    "rigl": skeletal.RigL(every=3),
    "gradual": skeletal.Gradual(density=0.05, every=3),
}
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.9, centered=True),
}
STEPS = 12


def begun(rule="rigl", optimizer="sgd", density=0.2, seed=0):
    model = convnet()
    mask = skeletal.prune(model, density=density, method="random-erk")
    skeleton = mask.attach(model)
    used = OPTIMIZERS[optimizer](model.parameters())
    return model, used, skeletal.MaskUpdate(skeleton, used, RULES[rule], steps=STEPS, seed=seed)


def backward(model, x, y, share=1.0):
    (share * nn.functional.cross_entropy(model(x), y)).backward()


def step(model, optimizer, update, batch):
    optimizer.zero_grad()
    backward(model, *batch)
    optimizer.step()
    return update.step()


def remembered(model, optimizer):
    """Weights and all optimizer state of their shape, by name and kind."""
    found = {(name, "weight"): weight.detach().clone() for name, weight in model.named_parameters()}
    for name, weight in model.named_parameters():
        for kind, value in optimizer.state[weight].items():
            if isinstance(value, torch.Tensor) and value.shape == weight.shape:
                found[name, kind] = value.clone()
    return found


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("rule", RULES)
def test_every_count_is_exact_new_weights_begin_at_zero_and_the_rest_is_untouched(rule, optimizer):
    model, used, update = begun(rule, optimizer)
    kept, total = update.mask.kept, update.mask.total
    per_layer = {name: int(keep.sum()) for name, keep in update.mask.items()}
    came = 0
    for number, batch in enumerate(images(4) * 3, 1):
        used.zero_grad()
        backward(model, *batch)
        used.step()
        before, old = remembered(model, used), update.mask
        assert update.step() == RULES[rule].due(number, STEPS)
        new = update.mask
        if rule == "gradual":
            assert new.kept == RULES[rule].count(kept, total, number // 3 * 3, STEPS)
        else:
            assert {name: int(keep.sum()) for name, keep in new.items()} == per_layer
        new.check(model)
        for (name, kind), value in remembered(model, used).items():
            if name not in new:
                assert torch.equal(value, before[name, kind])
                continue
            moved = old[name] ^ new[name]
            assert value[moved].eq(0).all(), (name, kind)
            assert torch.equal(value[~moved], before[name, kind][~moved]), (name, kind)
            came += int((new[name] & ~old[name]).sum())
    assert (came > 0) == (rule != "gradual")
    if rule == "gradual":
        assert update.mask.kept == round(0.05 * total)
    else:
        assert all(model.get_parameter(name)[keep].ne(0).any() for name, keep in update.mask.items())


def test_gradients_of_pruned_weights_are_those_of_an_explicit_dense_computation():
    """Torch's functional gradient at the masked weights as inputs: no hook, no skeleton, and the next mask by hand."""
    model, used, update = begun()
    for number, (x, y) in enumerate(images(3), 1):
        weights = {name: weight.detach().clone() for name, weight in model.named_parameters()}

        def loss(weights, x=x, y=y):
            return nn.functional.cross_entropy(functional_call(copy.deepcopy(model), weights, (x,)), y)

        dense = grad(loss)(weights)
        used.zero_grad()
        backward(model, x, y)
        taken = update._skeleton.gradients
        assert (number == 3) == bool(taken)
        for name, gradient in taken.items():
            assert torch.equal(gradient, dense[name])
            assert gradient[~update.mask[name]].ne(0).any() or update.mask[name].all()
            assert model.get_parameter(name).grad[~update.mask[name]].eq(0).all()
        used.step()
        old = update.mask
        update.step()
    for name, keep in update.mask.items():  # all that came have a larger gradient than all that could have come
        came, stayed_out = keep & ~old[name], ~keep & ~old[name]
        assert not came.any() or dense[name].abs()[came].min() >= dense[name].abs()[stayed_out].max()


def test_the_gradient_of_a_weight_that_is_used_twice_is_the_sum():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 6)

        def forward(self, x):
            return self.layer(torch.tanh(self.layer(x)))

    torch.manual_seed(0)
    model, x, y = Twice(), torch.randn(9, 6), torch.randint(6, (9,))
    skeleton = skeletal.prune(model, density=0.4, method="random").attach(model)
    used = OPTIMIZERS["sgd"](model.parameters())
    skeletal.MaskUpdate(skeleton, used, skeletal.RigL(every=1, end=1.0), steps=2)
    weights = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    dense = grad(lambda weights: nn.functional.cross_entropy(functional_call(model, weights, (x,)), y))(weights)
    backward(model, x, y)
    torch.testing.assert_close(skeleton.gradients["layer.weight"], dense["layer.weight"])


def test_gradients_accumulate_as_the_loss_does():
    (x, y), whole, parts = images(1)[0], begun(), begun()
    for model in (whole[0], parts[0]):
        model.eval()  # batch norm would see parts
    for model, used, update in (whole, parts):
        for pieces in (1, 1, 1 if model is whole[0] else 4):
            used.zero_grad()
            for part_x, part_y in zip(x.chunk(pieces), y.chunk(pieces), strict=True):
                backward(model, part_x, part_y, 1 / pieces)
            if update.due:
                taken = update._skeleton.gradients
                if model is whole[0]:
                    expected = taken
            used.step()
            update.step()
    for name, gradient in taken.items():
        torch.testing.assert_close(gradient, expected[name])
    assert whole[2].mask == parts[2].mask


def dense_gradients(model, x, y):
    """Torch's functional gradient at the masked weights."""
    weights = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    return grad(lambda w: nn.functional.cross_entropy(functional_call(copy.deepcopy(model), w, (x,)), y))(weights)


@pytest.mark.parametrize("to_none", [True, False])
def test_passes_that_zero_grad_throws_away_do_not_count(to_none):
    model, used, update = begun()
    model.eval()  # batch norm would see the other pass
    (x, y), (other, _) = images(2)
    for _ in range(3):
        backward(model, other, y, -10)  # a generator's, through this network
        used.zero_grad(set_to_none=to_none)
        backward(model, x, y, 0.25)
        torch.autograd.grad(nn.functional.cross_entropy(model(other), y), list(update._skeleton.weights.values()))
        backward(model, x, y, 0.75)
        if update.due:
            for name, gradient in update._skeleton.gradients.items():
                torch.testing.assert_close(gradient, dense_gradients(model, x, y)[name])
        used.step()
        update.step()


def test_gradients_of_an_empty_layer_accumulate():
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)).double()
    mask = {"0.weight": torch.rand(6, 6) < 0.5, "1.weight": torch.zeros(6, 6, dtype=torch.bool)}
    skeleton = skeletal.Mask(mask).attach(model)
    used = OPTIMIZERS["sgd"](model.parameters())
    skeletal.MaskUpdate(skeleton, used, skeletal.RigL(every=1, end=1.0), steps=2)
    x, y = torch.randn(8, 6).double(), torch.randint(6, (8,))
    for given in (x, x[:4]):
        backward(model, given, y[: len(given)])
        used.zero_grad(set_to_none=False)
    for half in (slice(4), slice(4, 8)):
        backward(model, x[half], y[half], 0.5)
    torch.testing.assert_close(skeleton.gradients["1.weight"], dense_gradients(model, x, y)["1.weight"])


@pytest.mark.parametrize("at", [2, 3, 7])  # before an update, after it, and in between
@pytest.mark.parametrize("rule", RULES)
def test_a_resumed_loop_ends_in_the_same_bits(rule, at):
    batches = images(4) * 3
    model, used, update = begun(rule)
    for number, batch in enumerate(batches, 1):
        step(model, used, update, batch)
        if number == at:
            saved = copy.deepcopy((update.state_dict(), model.state_dict(), used.state_dict()))
    other, again, resumed = begun(rule)
    for part, state in zip((resumed, other, again), saved, strict=True):
        part.load_state_dict(state)
    for batch in batches[at:]:
        step(other, again, resumed, batch)
    assert resumed.mask == update.mask
    for one, two in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(one, two)


def test_loading_in_the_wrong_order_is_told_of():
    model, used, update = begun()
    for batch in images(4):
        step(model, used, update, batch)
    other, _, resumed = begun()
    with pytest.warns(UserWarning, match=r"\d+ loaded weights of a layer .* load the state of its MaskUpdate before"):
        other.load_state_dict(model.state_dict())
    resumed.load_state_dict(update.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other.load_state_dict(model.state_dict())
    update.mask.check(other)


def test_an_update_whose_gradients_overflow_is_left_out():
    model, used, update = begun()
    before = update.mask
    for number, (x, y) in enumerate(images(3), 1):
        used.zero_grad()
        backward(model, x, y, float("inf") if number == 3 else 1.0)
        if number < 3:
            used.step()  # as GradScaler does
        assert not update.step()
    assert update.mask == before and not update._skeleton.gradients


def test_several_optimizers_channels_last_and_a_frozen_layer():
    model = convnet().to(memory_format=torch.channels_last)
    skeleton = skeletal.prune(model, density=0.3, method="random-uniform").attach(model)
    model[3].weight.requires_grad_(False)
    used = [OPTIMIZERS["sgd"](model[:3].parameters()), OPTIMIZERS["adamw"](model[3:].parameters())]
    update = skeletal.MaskUpdate(skeleton, used, skeletal.RigL(every=1, end=1.0), steps=4)
    first = update.mask
    for x, y in images(3):
        model.zero_grad()
        backward(model, x.contiguous(memory_format=torch.channels_last), y)
        for one in used:
            one.step()
        assert update.step()
    assert update.mask.kept == first.kept
    assert torch.equal(update.mask["3.weight"], first["3.weight"])
    assert not torch.equal(update.mask["0.weight"], first["0.weight"])
    assert not torch.equal(update.mask["8.weight"], first["8.weight"])


def test_what_does_not_fit_is_refused():
    model, used, update = begun()
    with pytest.raises(ValueError, match=r"no optimizer given holds 0\.weight"):
        skeletal.MaskUpdate(update._skeleton, OPTIMIZERS["sgd"](convnet().parameters()), RULES["set"], steps=STEPS)
    with pytest.raises(skeletal.MaskError, match=r"does not fit the attached one at 0\.weight"):
        update.load_state_dict({"step": 1, "begun_with": 5, "mask": {"0.weight": torch.ones(2, dtype=torch.bool)}})

    @dataclass(frozen=True, kw_only=True)
    class Wrong(Rule):
        def next_mask(self, at):
            return {name: keep.float() for name, keep in at.mask.items()}

    wrong = skeletal.MaskUpdate(update._skeleton, used, Wrong(every=1), steps=2)
    with pytest.raises(skeletal.MaskError, match=r"the rule's new mask of 0\.weight is not a bool tensor"):
        wrong.step()
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(skeletal.NonFiniteError, match=r"0\.weight holds NaN or infinity after step 3"):
        for _ in range(3):
            update.step()
    update._skeleton.detach()
    with pytest.raises(skeletal.MaskError, match="it was detached"):
        for _ in range(3):
            update.step()
