"""A batch of one image is refused exactly where a training would fail on it: the truth is that training."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
from torch import nn

from skeletal.harness.training.task import refuse_single_images
from tests.harness.training.blobs import CLASSES, EXAMPLES, TRAINING, blobs, convnet, mlp, run, same


def pooled():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, CLASSES)
    )


def layer_norm():
    return nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, CLASSES))


@pytest.mark.parametrize("batch_size", [1, 16, 23, EXAMPLES - 1, EXAMPLES, EXAMPLES + 1])
@pytest.mark.parametrize(
    ("network", "shape"),
    [(mlp, (8,)), (layer_norm, (8,)), (convnet, (3, 6, 6)), (convnet, (3, 3, 3)), (pooled, (3, 6, 6))],
)
def test_refused_exactly_where_training_fails(network, shape, batch_size):
    training, data, model = replace(TRAINING, epochs=1, batch_size=batch_size), blobs(shape), network()
    try:
        run(network(), data, training)
        refused = nullcontext()
    except ValueError as error:
        assert "Expected more than 1 value per channel" in str(error)
        refused = pytest.raises(ValueError, match=f"70 training images in batches of {batch_size} .*--batch-size")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.eval()
    with refused:
        refuse_single_images(model, data, training)
    assert same(before, dict(model.state_dict())) and not any(module.training for module in model.modules())


@pytest.mark.parametrize(("ranks", "fails"), [(4, True), (3, False), (2, False)])
def test_parts_of_processes_count(monkeypatch, ranks, fails):
    """The last batch has 6 images: four processes get 2, 2, 1 and 1 of them."""
    monkeypatch.setattr("skeletal.harness.training.task.ranks", lambda: ranks)
    with pytest.raises(ValueError, match="a batch of a process") if fails else nullcontext():
        refuse_single_images(mlp(), blobs(), TRAINING)
    refuse_single_images(mlp(), blobs(), replace(TRAINING, sync_bn=True))
