"""Learning rates, epoch by epoch: milestones in proportion, and one cycle up and down."""

from dataclasses import replace

import pytest

from skeletal.harness.config import Training
from skeletal.harness.training.rate import milestones, one_cycle
from tests.harness.training.blobs import TRAINING, blobs, folder, mlp, run


@pytest.mark.parametrize("epochs, expected", [(350, [150, 250]), (2, [1]), (1, [1]), (7, [3, 5])])
def test_milestones_keep_their_proportion(epochs, expected):
    assert milestones(Training(epochs=epochs, milestones=(150 / 350, 250 / 350))) == expected


def test_one_cycle_rises_and_falls(tmp_path):
    place = folder(tmp_path)
    run(mlp(), blobs(), replace(TRAINING, epochs=8, decay="one-cycle"), folder=place)
    rates = [row["lr"] for row in place.metrics()]
    assert rates == pytest.approx(
        [TRAINING.lr * x for x in (1 / 4, 3 / 4, 11 / 12, 9 / 12, 7 / 12, 5 / 12, 3 / 12, 1 / 12)]
    )


@pytest.mark.parametrize("epochs", [1, 2, 3, 40, 350])
def test_one_cycle_is_above_zero_and_at_most_one(epochs):
    shares = [one_cycle(epoch, epochs) for epoch in range(epochs)]
    assert all(0 < share <= 1 for share in shares)
    peak = shares.index(max(shares))
    assert shares[: peak + 1] == sorted(shares[: peak + 1]) and shares[peak:] == sorted(shares[peak:], reverse=True)
