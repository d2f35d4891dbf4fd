"""A model that exchanges a held weight for another parameter trains densely there: the next step says so."""

import warnings

import pytest
import torch
from torch import nn

import skeletal
from tests.cases import convnet, images


def step(model):
    x, y = images()[0]
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()


def skeleton():
    model = convnet()
    mask = skeletal.prune(model, density=0.3, method="random")
    mask.attach(model)
    return model


def put_another(model):
    model[0].weight = nn.Parameter(torch.randn_like(model[0].weight))


def put_another_layer(model):
    model[0] = nn.Conv2d(*model[0].weight.shape[1::-1], model[0].kernel_size, padding=model[0].padding)


def convert_into_new_parameters(model):
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    model.double().float()
    torch.__future__.set_overwrite_module_params_on_conversion(before)


EXCHANGES = {
    "parameter": put_another,
    "layer": put_another_layer,
    "weight norm": lambda model: nn.utils.parametrizations.weight_norm(model[0]),
    "conversion": convert_into_new_parameters,
}


@pytest.mark.parametrize("exchange", EXCHANGES.values(), ids=EXCHANGES)
def test_an_exchanged_weight_is_told_once(exchange):
    model = skeleton()
    exchange(model)
    with pytest.warns(UserWarning, match=r"^0\.weight.* is not the parameter that the mask was attached to"):
        step(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(model)


def rename(model):
    nn.utils.spectral_norm(model[0])  # the parameter itself is now called weight_orig


def freeze(model):
    model.requires_grad_(False)
    model[-1].requires_grad_(True)


STAYS = {
    "another name": rename,
    "frozen": freeze,
    "loaded": lambda model: model.load_state_dict(model.state_dict(), assign=True),
    "converted": lambda model: model.double().float(),
    "detached": lambda model: skeletal.prune(model, density=0.3, method="random").attach(model).detach(),
}


@pytest.mark.parametrize("change", STAYS.values(), ids=STAYS)
def test_what_is_still_the_models_is_not_told(change):
    model = skeleton()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that both masks prune
        change(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(model)


def test_two_optimizers_and_a_model_that_is_gone():
    model, other = skeleton(), nn.Linear(2, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x, y = images()[0]
        halves = [torch.optim.SGD(list(model.parameters())[i::2], 0.1) for i in range(2)]
        nn.functional.cross_entropy(model(x), y).backward()
        for optimizer in halves:
            optimizer.step()
        del model, halves, optimizer
        other(torch.ones(1, 2)).sum().backward()
        torch.optim.SGD(other.parameters(), 0.1).step()
