"""A loss or a weight that is not finite ends a training, and is never saved."""

import pytest
import torch

from skeletal.core.errors import NonFiniteError
from skeletal.harness.config import Training
from skeletal.harness.training import checkpoint
from tests.harness.training.blobs import EXAMPLES, TRAINING, blobs, folder, mlp, run


def test_a_loss_that_is_nan_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    place, data = folder(tmp_path), blobs()
    data.train.before[1, 2] = lambda: data.train.x.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match=r"loss is nan in epoch 2, step 3.*state\.pt holds the last good"):
        run(mlp(), data, folder=place)
    state = checkpoint.load(place.path)
    assert (state["epoch"], state["batch"]) == (1, 0)
    assert all(value.isfinite().all() for value in state["model"].values())


def test_weights_that_overflow_in_the_last_step_are_not_saved(tmp_path):
    model = mlp()
    model[4].bias.register_hook(lambda g: torch.full_like(g, torch.inf))
    training = Training(**{**vars(TRAINING), "batch_size": EXAMPLES})
    with pytest.raises(NonFiniteError, match=r"4\.bias is not finite in epoch 1, step 1"):
        run(model, blobs(), training, folder=folder(tmp_path))
    assert checkpoint.load(folder(tmp_path).path) is None
