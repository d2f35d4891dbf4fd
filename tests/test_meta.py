"""Models on the meta device, which have shapes and no values: what can be known of them, and what is refused."""

import pytest
import torch

import skeletal
from skeletal.core.errors import MaskError
from tests.cases import random_mask

NETWORKS = {"lenet5": (1, 28), "vgg-mini": (3, 32), "resnet20-cifar": (3, 32)}


def created(name, device):
    channels, size = NETWORKS[name]
    with torch.device(device):
        return skeletal.models.create(name, num_classes=10, in_channels=channels, image_size=size), torch.zeros(
            2, channels, size, size
        )


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_created_and_diagnosed_without_its_weights(name):
    (model, example), (real, zeros) = created(name, "meta"), created(name, "cpu")
    assert all(tensor.is_meta for tensor in [*model.parameters(), *model.buffers(), example])
    assert model(example).shape == (2, 10)
    mask = skeletal.Mask(random_mask(real, 0.02))
    found, expected = skeletal.diagnose(model, mask, example), skeletal.diagnose(real, mask, zeros)
    assert found == expected and found.macs.forward_kept > 0
    assert all(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])  # left as found


def test_a_mask_can_be_attached_but_not_checked():
    (model, example), (real, _) = created("lenet5", "meta"), created("lenet5", "cpu")
    mask = skeletal.Mask(random_mask(real, 0.1))
    with mask.attach(model):
        model(example).sum().backward()
        assert all(weight.grad.is_meta for weight in model.parameters())
    with pytest.raises(MaskError, match=r"conv1\.weight is on the meta device and has no values to check"):
        mask.check(model)


@pytest.mark.parametrize("method", ["force", "random", "magnitude", "synflow"])
def test_there_is_nothing_to_prune(method):
    model, example = created("lenet5", "meta")
    batches = [(example, torch.zeros(2, dtype=torch.long))]
    with pytest.raises(ValueError, match="on the meta device and has no weights: materialize it first"):
        skeletal.prune(model, batches, density=0.1, method=method)
