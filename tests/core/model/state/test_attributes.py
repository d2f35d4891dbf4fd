"""Plain attributes that a network's code changes: found, told from others, set again from a stranger's values."""

import copy

import pytest
import torch
from torch import nn

from skeletal.core.model.state.attributes import Attributes, set_attributes


class Part(nn.Module):
    def __init__(self):
        super().__init__()
        self.n, self.on, self.name, self.best = 0, True, "a", None
        self.seen, self.table, self.mean, self.width = [], {}, torch.zeros(1), 8
        self.drop, self.noise = nn.Dropout(), torch.Generator()


def changed():
    model = nn.Sequential(Part(), nn.Linear(1, 1))
    before = Attributes(model)
    return model, before


def test_nothing_has_changed():
    model, before = changed()
    model.eval()
    assert before.changed(model) == {} and before.lost(model) == []


def test_plain_values_that_changed_are_found_and_set_again():
    model, before = changed()
    part = model[0]
    part.n, part.on, part.name, part.best, part.new, part.drop.p = 3, False, "b", 0.5, 7, 0.9
    values = before.changed(model)
    assert values == {"0.n": 3, "0.on": False, "0.name": "b", "0.best": 0.5, "0.new": 7}
    fresh = nn.Sequential(Part(), nn.Linear(1, 1))
    set_attributes(fresh, values)
    assert before.changed(fresh) == values and fresh[0].width == 8
    before.restore(model)
    assert before.changed(model) == {"0.new": 7}


def test_what_changed_and_is_not_plain_is_named():
    model, before = changed()
    model[0].seen.append(1)
    model[0].table["a"] = 1
    model[0].mean += 1
    torch.rand(1, generator=model[0].noise)
    assert before.changed(model) == {} and before.lost(model) == ["0.seen", "0.table", "0.mean", "0.noise"]


def test_another_form_of_the_network_has_copies_of_its_objects():
    model, before = changed()
    model[0].n = 3
    model[0].seen.append(1)
    other = copy.deepcopy(model)
    now = before.of_another_form(model, other)
    assert now.changed(other) == {"0.n": 3} and now.lost(other) == ["0.seen"]
    other[0].n = 4
    assert now.of_another_form(other, model).changed(model) == {"0.n": 3}


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning", "ignore:.*spectral_norm:FutureWarning")
def test_weights_that_are_computed_anew_are_not_lost():
    class Own(nn.Linear):
        pass

    model = nn.Sequential(nn.utils.weight_norm(Own(3, 3)), nn.utils.spectral_norm(Own(3, 3)))
    before = Attributes(model)
    model(torch.ones(2, 3))
    assert before.lost(model) == []


@pytest.mark.parametrize(
    "values",
    [3, {"0.n": [1]}, {"0._parameters": 1}, {"0.training": True}, {"5.n": 1}, {"1.in_features": 3}, {4: 1}],
)
def test_a_strangers_values_are_refused(values):
    with pytest.raises(TypeError):
        set_attributes(changed()[0], values)
