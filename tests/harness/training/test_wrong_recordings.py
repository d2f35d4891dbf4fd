"""A recording that does other than eager steps is found out before it trains anything."""

import warnings

import pytest
import torch
from torch import nn

from skeletal.core.errors import NonFiniteError
from tests.harness.training.blobs import Counts, PyDrop, folder, same
from tests.harness.training.recorded import Refuses, Uncaptured, network, run, static

__all__ = ["static"]


class Stale(Uncaptured):
    """The first batch again and again, as with a counter that the recording has as a constant."""

    def record(self, step):
        static = step.__defaults__ and step.__closure__

        def again():
            (owner,) = (cell.cell_contents for cell in static if hasattr(cell.cell_contents, "seek"))
            position = owner._position.clone()
            owner.seek(0)
            step()
            owner.table[position] = owner.table[:1].clone()
            owner._position.copy_(position + 1)

        return again


class Twice(Uncaptured):
    """Moves the weights twice."""

    def record(self, step):
        def twice():
            step()
            step()

        return twice


class Never(Uncaptured):
    """Does nothing."""

    def record(self, step):
        return lambda: None


class Forgetful(Uncaptured):
    """Leaves no scores."""

    def record(self, step):
        (owner,) = (cell.cell_contents for cell in step.__closure__ if hasattr(cell.cell_contents, "seek"))

        def forgetting():
            step()
            owner.table.zero_()

        return forgetting


class WrongRate(Uncaptured):
    """Steps by another learning rate."""

    def record(self, step):
        (owner,) = (cell.cell_contents for cell in step.__closure__ if hasattr(cell.cell_contents, "seek"))

        def faster():
            owner._rate.mul_(2)
            step()
            owner._rate.div_(2)

        return faster


@pytest.mark.parametrize(
    ("recorder", "message"),
    [
        (Stale, "differs from eager ones .*step 2"),
        (Twice, "differs from eager ones .*step 1"),
        (Never, "differs from eager ones .*step 1"),
        (Forgetful, "differs from eager ones .*its loss is 0"),
        (WrongRate, "differs from eager ones .*step 1"),
        (Refuses, "cannot be captured .*stream is capturing and much more"),
    ],
)
def test_a_recording_that_is_wrong_is_not_trained_by(tmp_path, static, recorder, message):
    expected = run()
    static(recorder())
    place = folder(tmp_path)
    with pytest.warns(UserWarning, match=message):
        model = run(folder=place)
    assert same(dict(model.state_dict()), dict(expected.state_dict()))
    row = place.metrics()[0]
    assert "step" not in row  # on a CPU there is no choice to tell of


class Average(nn.Module):
    """Replaces its buffer by another tensor in each step, as many public codes do."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, x):
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().abs().mean()
        return x + self.mean


def test_a_buffer_that_becomes_another_tensor_is_not_recorded(static):
    expected = run(model=network().append(Average()))
    recorder = static()
    with pytest.warns(UserWarning, match="cannot be captured .*8.mean becomes another tensor"):
        model = run(model=network().append(Average()))
    assert not recorder.recorded and expected[-1].mean > 0
    assert same(dict(model.state_dict()), dict(expected.state_dict()))


def test_a_network_that_draws_from_python_and_numpy_is_not_recorded(static):
    expected = run(model=network().append(PyDrop()))
    recorder = static()
    with pytest.warns(UserWarning, match="cannot be captured .*draws random numbers from Python's"):
        model = run(model=network().append(PyDrop()))
    assert not recorder.recorded
    assert same(dict(model.state_dict()), dict(expected.state_dict()))


def test_a_network_that_counts_its_steps_is_not_recorded(static):
    expected = run(model=network().append(Counts()))
    recorder = static()
    with pytest.warns(UserWarning, match=r"cannot be captured .*changes 8\.n in its first steps"):
        model = run(model=network().append(Counts()))
    assert not recorder.recorded and model[-1].n == expected[-1].n
    assert same(dict(model.state_dict()), dict(expected.state_dict()))


def test_a_loss_that_is_nan_in_both_is_no_difference(static):
    recorder = static()
    with warnings.catch_warnings(), pytest.raises(NonFiniteError, match="the training loss is nan"):
        warnings.simplefilter("error")
        run(model=network().append(nn.Threshold(1e30, torch.nan)))
    assert recorder.recorded
