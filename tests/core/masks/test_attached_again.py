"""A mask attached after another takes over the weights it names, and no others."""

import warnings

import pytest
import torch
from torch import nn
from torch.optim.optimizer import _global_optimizer_post_hooks

import skeletal
from tests.cases import convnet, images
from tests.core.masks.test_attach import OPTIMIZERS, train


def test_attaching_again_replaces_what_was_attached():
    model, batches = convnet(), images()
    small, large = (skeletal.prune(model, batches, density=d, method="snip") for d in (0.1, 0.3))
    large.attach(model)
    before = len(_global_optimizer_post_hooks)
    large.attach(model)
    small.attach(model)
    assert len(_global_optimizer_post_hooks) == before
    with pytest.warns(UserWarning, match=f"{large.kept - small.kept:,} weights that this mask keeps are zero"):
        large.attach(model)
    train(model, OPTIMIZERS["sgd"](model.parameters()), batches)
    large.check(model)


def two_parts():
    """A model with a mask attached to its first layer alone, and then one to its second."""
    model = convnet()
    masks = [skeletal.prune(model, density=0.3, method="random", prunable=[name]) for name in ("0.weight", "3.weight")]
    return model, masks, [mask.attach(model) for mask in masks]


def test_another_mask_on_other_layers_leaves_the_first_attached():
    model, masks, _ = two_parts()
    model.load_state_dict(convnet(seed=5).state_dict())
    train(model, OPTIMIZERS["sgd"](model.parameters()), images())
    for mask in masks:
        mask.check(model)


def test_a_mask_on_a_part_leaves_the_rest_of_the_model_held():
    model = nn.Sequential(convnet(), nn.Linear(10, 10))
    body = skeletal.prune(model[0], density=0.3, method="random", seed=1)
    mask = skeletal.prune(model, density=0.3, method="random")
    whole = mask.attach(model)
    with pytest.warns(UserWarning, match="weights that this mask keeps are zero"):
        body.attach(model[0])
    assert list(whole.mask) == ["1.weight"]
    train(model, OPTIMIZERS["sgd"](model.parameters()), images())
    body.check(model[0])
    head = skeletal.Mask({"1.weight": mask["1.weight"]})
    head.check(model)
    with pytest.raises(skeletal.MaskError, match=r"does not hold 0\.0\.weight any more"):
        whole.move(mask)
    whole.detach()
    train(model, OPTIMIZERS["sgd"](model.parameters()), images())
    body.check(model[0])
    with pytest.raises(skeletal.MaskError):
        head.check(model)


@pytest.mark.parametrize("first", [0, 1])
def test_detaching_lets_go_of_its_own_alone_in_either_order(first):
    before = len(_global_optimizer_post_hooks)
    model, masks, skeletons = two_parts()
    skeletons[first].detach()
    train(model, OPTIMIZERS["sgd"](model.parameters()), images())
    masks[1 - first].check(model)
    with pytest.raises(skeletal.MaskError):
        masks[first].check(model)
    skeletons[1 - first].detach()
    assert len(_global_optimizer_post_hooks) == before
    assert not any(p._backward_hooks for p in model.parameters())
    assert not any(module._load_state_dict_post_hooks for module in model.modules())


def test_attaching_to_exchanged_weights_ends_the_mask_before():
    before = len(_global_optimizer_post_hooks)
    model = convnet()
    old, new = (skeletal.prune(model, density=0.3, method="random", seed=seed) for seed in (0, 1))
    old.attach(model)
    for name in ("weight", "layer"):
        if name == "weight":
            model[0].weight = nn.Parameter(torch.randn_like(model[0].weight))
        else:
            model[0] = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            new.attach(model)
        assert len(_global_optimizer_post_hooks) == before + 1
        model.load_state_dict(convnet(seed=5).state_dict())
        assert torch.equal(model[0].weight != 0, new["0.weight"])
