"""What a diagnosis tells of a mask, of any kind of network, which is left as it was found."""

import copy

import pytest
import torch
from torch import nn

import skeletal
from skeletal.core.diagnosis.diagnose import diagnose
from skeletal.core.diagnosis.macs import Macs
from skeletal.core.model.weights import prunable_weights
from skeletal.harness import models
from skeletal.harness.models.resnet import BasicBlock, resnet
from tests.cases import ZOO, Residual, images, random_mask
from tests.core.diagnosis.following import equal


@pytest.mark.parametrize("name", ZOO)
def test_every_kind_of_network_dense_and_empty_and_left_as_found(name):
    make, data = ZOO[name]
    model, batch = make().train(), data()[0]
    mask = {name: torch.ones_like(w, dtype=torch.bool) for name, w in prunable_weights(model).items()}
    state, hooks = copy.deepcopy(model.state_dict()), [len(m._forward_hooks) for m in model.modules()]
    before = torch.get_rng_state()
    found = diagnose(model, mask, batch)
    assert torch.equal(before, torch.get_rng_state())
    equal(state, model.state_dict())
    assert all(module.training for module in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert hooks == [len(m._forward_hooks) for m in model.modules()]
    assert found.connected and found.effective == found.effective_density * sum(k.numel() for k in mask.values())
    if name != "everything":  # which looks at parts of its signal only
        assert found.effective_density == 1
    assert found.macs.forward_dense == found.macs.forward_kept > 0
    assert 2 < found.macs.training_dense / found.macs.forward_dense <= 3
    empty = diagnose(model, {name: torch.zeros_like(keep) for name, keep in mask.items()}, batch)
    assert (empty.connected, empty.effective, empty.macs.training_kept) == (False, 0, 0)
    assert empty.skip_only == () and len(empty.dead_layers) == len(mask)


def test_survival_only_through_a_skip_connection_is_told():
    model = Residual()
    mask = {name: torch.ones_like(w, dtype=torch.bool) for name, w in prunable_weights(model).items()}
    mask["block.0.weight"].zero_()
    found = diagnose(model, mask, images()[0])
    assert found.connected and found.skip_only == ("block.0.weight",)
    assert "survives only around block.0.weight" in str(found) and "empty" in str(found)
    mask["stem.weight"].zero_()
    found = diagnose(model, mask, images()[0])
    assert not found.connected and not found.skip_only and "cannot learn" in str(found)
    assert found.layers[-1].on_constant == 60  # the stem has biases


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU, nn.RNNCell, nn.LSTMCell, nn.GRUCell])
def test_a_recurrent_layer_that_reads_nothing_lives_on_its_biases(kind):
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = kind(4, 6), nn.Linear(6, 3)

        def forward(self, x):
            if isinstance(self.rnn, nn.RNNBase):
                return self.head(self.rnn(x)[0][-1])
            state = None
            for step in x:
                state = self.rnn(step, state)
            return self.head(state[0] if isinstance(state, tuple) else state)

    model, last = Network(), "_l0" if issubclass(kind, nn.RNNBase) else ""
    names = f"rnn.weight_ih{last}", f"rnn.weight_hh{last}", "head.weight"
    mask = {name: torch.ones_like(model.get_parameter(name), dtype=torch.bool) for name in names}
    found = diagnose(model, mask, torch.randn(3, 2, 4))
    assert found.connected and found.effective_density == 1
    mask[names[0]].zero_()
    found = diagnose(model, mask, torch.randn(3, 2, 4))
    assert not found.connected and found.effective == 0
    assert [layer.on_constant for layer in found.layers] == [0, mask[names[1]].numel(), 18]


def test_a_layer_cut_off_by_an_empty_one_survives_around_too():
    model = resnet(BasicBlock, (1, 1), 4, num_classes=3, in_channels=2, image_size=8)
    mask = {name: torch.ones_like(w, dtype=torch.bool) for name, w in prunable_weights(model).items()}
    example = torch.randn(2, 2, 8, 8)
    assert diagnose(model, mask, example).effective_density == 1
    mask["layer1.0.conv1.weight"].zero_()
    found = diagnose(model, mask, example)
    assert found.skip_only == ("layer1.0.conv1.weight", "layer1.0.conv2.weight")
    rows = {layer.name: layer for layer in found.layers}
    assert rows["layer1.0.conv1.weight"].empty and not rows["layer1.0.conv2.weight"].empty
    assert rows["layer1.0.conv2.weight"].on_constant == 4 * 4 * 9
    mask["layer1.0.conv1.weight"].fill_(True)
    mask["layer1.0.conv2.weight"].zero_()
    rows = {layer.name: layer for layer in diagnose(model, mask, example).layers}
    assert rows["layer1.0.conv1.weight"].dead == 4 * 4 * 9


def test_channels_of_grouped_and_transposed_layers():
    model = nn.Sequential(nn.Conv2d(4, 6, 1, groups=2, bias=False), nn.ConvTranspose2d(6, 4, 1, groups=2, bias=False))
    mask = {name: torch.ones_like(w, dtype=torch.bool) for name, w in prunable_weights(model).items()}
    mask["0.weight"][:, 1] = False  # the second input of each group
    mask["0.weight"][:2] = False  # the first two outputs, hence the second layer's first two inputs
    mask["1.weight"][:3, 1] = False  # the first group's second output
    first, second = diagnose(model, mask, torch.randn(2, 4, 3, 3)).layers
    assert (first.dead_inputs, first.dead_outputs) == (2, 2)
    assert (second.dead_inputs, second.dead_outputs) == (2, 1)
    assert (first.live_inputs, first.live_outputs, second.live_inputs, second.live_outputs) == (2, 4, 4, 3)


def test_the_narrowest_place_is_named():
    model = nn.Sequential(*(nn.Conv2d(4, 4, 3, padding=1, bias=False) for _ in range(3)))
    mask = {name: torch.ones_like(w, dtype=torch.bool) for name, w in prunable_weights(model).items()}
    mask["1.weight"][:, 2:] = False
    mask["1.weight"][3:] = False
    found = diagnose(model, mask, torch.randn(2, 4, 5, 5))
    assert found.narrowest is not None and found.narrowest.name == found.to_dict()["narrowest"] == "1.weight"
    assert "narrowest: 54 effective weights in 1.weight, from 2 channels to 3" in str(found)
    empty = diagnose(model, {name: torch.zeros_like(keep) for name, keep in mask.items()}, torch.randn(2, 4, 5, 5))
    assert empty.narrowest is None and "narrowest" not in str(empty) and empty.to_dict()["narrowest"] is None


class FixedBatch(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(x.view(16, 6))


def test_models_that_take_only_whole_batches_and_those_that_cannot_run():
    model = FixedBatch()
    mask = {"head.weight": torch.ones(3, 6, dtype=torch.bool)}
    found = diagnose(model, mask, torch.randn(16, 6))
    assert found.macs == Macs(18, 18, 36, 36) and found.effective == 18
    with pytest.raises(ValueError, match="FixedBatch does not run on this example: RuntimeError"):
        diagnose(model, mask, torch.randn(7, 5))
    with pytest.raises(skeletal.MaskError, match="belongs to another model"):
        diagnose(model, {"head.weight": torch.ones(3, 5, dtype=torch.bool)}, torch.randn(16, 6))


def test_a_network_that_carries_a_state_from_batch_to_batch():
    class Carrying(nn.Sequential):
        state = 0.0

        def forward(self, x):
            out = super().forward(x) + self.state  # of another batch size it would not fit
            self.state = out.detach()
            return out

    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    mask = skeletal.Mask(random_mask(plain, 0.3))
    assert skeletal.diagnose(Carrying(*plain), mask, torch.randn(5, 6)) == skeletal.diagnose(
        plain, mask, torch.randn(5, 6)
    )


def test_a_pruned_resnet_in_numbers():
    model = models.create("resnet20-cifar", num_classes=4, image_size=8)
    mask = skeletal.prune(model, density=0.02, method="random")
    found = diagnose(model, mask, torch.randn(1, 3, 8, 8))
    assert found.connected and 0 < found.effective < mask.kept
    assert all(layer.kept == layer.effective + layer.on_constant + layer.dead for layer in found.layers)
    assert sum(layer.kept for layer in found.layers) == mask.kept
    assert found.macs.forward_kept < 0.03 * found.macs.forward_dense
    assert f"kept {mask.kept:,} of {mask.total:,}" in str(found)
