"""A run that was stopped or killed goes on to the same bits, and from its own checkpoint only."""

import signal
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from skeletal import prune
from skeletal.core.model.state.random_state import seed_all
from skeletal.harness.console.interrupt import Interrupted
from skeletal.harness.store.pace import Pace
from skeletal.harness.store.weightsfile import load_weights
from skeletal.harness.training import checkpoint
from tests.harness.training.blobs import TRAINING, Counts, HalfMask, PyDrop, blobs, folder, mlp, run, same, timeless


@pytest.mark.parametrize("stop_at", [(0, 1), (1, 3), (1, 4), (2, 0)])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path, capsys, stop_at, number):
    whole = folder(tmp_path, "whole")
    expected = mlp()
    run(expected, blobs(), folder=whole, mask=HalfMask())

    parts = folder(tmp_path, "parts")
    data = blobs(before={stop_at: lambda: signal.raise_signal(number)})
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted) as stopped:
        run(mlp(), data, folder=parts, mask=HalfMask(), resume_command="skeletal train --resume it")
    assert stopped.value.folder is parts
    assert "skeletal train --resume it" in capsys.readouterr().err
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    saved = checkpoint.load(parts.path)
    after = stop_at[1] + 1  # the step that was under way is finished
    assert (saved["epoch"], saved["batch"]) == ((stop_at[0], after) if after < 5 else (stop_at[0] + 1, 0))

    torch.manual_seed(99)  # a new process would have another state
    resumed = mlp()
    result = run(resumed, data, folder=parts, mask=HalfMask())
    assert same(dict(expected.state_dict()), dict(resumed.state_dict()))
    a, b = checkpoint.load(whole.path), checkpoint.load(parts.path)
    for part in ("model", "optimizer", "scheduler", "rng", "epoch", "batch"):
        assert same(a[part], b[part]), part
    assert timeless(whole.metrics()) == timeless(parts.metrics())
    assert result.test.top1 == whole.metrics()[-1]["test_top1"]


def random_mlp():
    return mlp().append(PyDrop())


@pytest.mark.parametrize("stop_at", [(0, 1), (1, 4)])
def test_a_network_that_draws_from_python_and_numpy_goes_on_to_the_same_bits(tmp_path, stop_at):
    expected, resumed = random_mlp(), random_mlp()
    run(expected, blobs())
    data = blobs(before={stop_at: lambda: signal.raise_signal(signal.SIGINT)})
    with pytest.raises(Interrupted):
        run(random_mlp(), data, folder=folder(tmp_path))
    seed_all(99)
    run(resumed, data, folder=folder(tmp_path))
    assert same(dict(expected.state_dict()), dict(resumed.state_dict()))


def test_a_checkpoint_without_the_states_of_python_and_numpy_resumes(tmp_path):
    data = blobs(before={(1, 1): lambda: signal.raise_signal(signal.SIGINT)})
    with pytest.raises(Interrupted):
        run(mlp(), data, folder=folder(tmp_path))
    state = checkpoint.load(folder(tmp_path).path)
    del state["rng_beside_torch"], state["format"]
    checkpoint.save(folder(tmp_path).path, state)
    assert run(mlp(), data, folder=folder(tmp_path)).epochs == 3


@pytest.mark.parametrize("record", [False, True])
def test_a_network_that_counts_its_steps_goes_on_counting(tmp_path, record):
    expected, resumed = mlp().append(Counts()), mlp().append(Counts(record))
    run(expected, blobs())
    data = blobs(before={(1, 1): lambda: signal.raise_signal(signal.SIGINT)})
    with pytest.raises(Interrupted):
        run(mlp().append(Counts(record)), data, folder=folder(tmp_path))
    told = pytest.warns(UserWarning, match=r"writes to 5\.record, which") if record else nullcontext()
    with told:
        run(resumed, data, folder=folder(tmp_path))
    assert resumed[-1].n == expected[-1].n == 15
    assert same(dict(expected.state_dict()), dict(resumed.state_dict()))
    weights, attributes = load_weights(folder(tmp_path).path)
    assert attributes == {"5.n": 15} and same(weights, dict(expected.state_dict()))


def test_a_compiled_network_counts_as_the_model_does(tmp_path):
    mask = prune(mlp().append(Counts()), density=0.5, method="random")
    models = [mlp().append(Counts()) for _ in range(3)]
    run(models[0], blobs(), replace(TRAINING, engine="sparse"), mask=mask)
    data = blobs(before={(1, 1): lambda: signal.raise_signal(signal.SIGINT)})
    with pytest.raises(Interrupted):
        run(models[1], data, replace(TRAINING, engine="sparse"), mask=mask, folder=folder(tmp_path))
    run(models[2], data, replace(TRAINING, engine="sparse"), mask=mask, folder=folder(tmp_path))
    assert [model[-1].n for model in models] == [15, 7, 15]
    assert same(dict(models[0].state_dict()), dict(models[2].state_dict()))


class Rare(Pace):
    """Writes the first checkpoint, and then only what has to be written."""

    def due(self):
        return self.saved is None


@pytest.mark.parametrize("stop", [False, True])
def test_a_run_that_writes_few_checkpoints_goes_on_to_the_same_bits(tmp_path, monkeypatch, stop):
    whole, parts = folder(tmp_path, "whole"), folder(tmp_path, "parts")
    expected = mlp()
    run(expected, blobs(), folder=whole)
    monkeypatch.setattr("skeletal.harness.training.trainer.Pace", Rare)

    def end():
        if stop:
            signal.raise_signal(signal.SIGINT)
        else:
            raise SystemExit

    with pytest.raises(Interrupted if stop else SystemExit):
        run(mlp(), blobs(before={(2, 1): end}), folder=parts)
    saved = checkpoint.load(parts.path)
    assert (saved["epoch"], saved["batch"]) == ((2, 2) if stop else (1, 0))
    resumed = mlp()
    run(resumed, blobs(), folder=parts)
    assert same(dict(expected.state_dict()), dict(resumed.state_dict()))
    assert timeless(whole.metrics()) == timeless(parts.metrics())
    assert checkpoint.load(parts.path)["epoch"] == 3


def test_a_killed_run_drops_the_epoch_it_had_begun(tmp_path):
    whole, killed = folder(tmp_path, "whole"), folder(tmp_path, "killed")
    run(mlp(), blobs(), folder=whole)

    def kill():
        raise SystemExit  # no handler of ours sees it, as with SIGKILL

    data = blobs(before={(1, 2): kill})
    with pytest.raises(SystemExit):
        run(mlp(), data, folder=killed)
    killed.append({"epoch": 1, "loss": "of a checkpoint that was never written"})
    run(mlp(), data, folder=killed)
    assert timeless(whole.metrics()) == timeless(killed.metrics())
    assert same(checkpoint.load(whole.path)["optimizer"], checkpoint.load(killed.path)["optimizer"])


def test_a_trained_run_only_repeats_its_result(tmp_path):
    place = folder(tmp_path)
    first = run(mlp(), blobs(), folder=place)

    def never():
        raise AssertionError("trained again")

    again = run(mlp(), blobs(before={(0, 0): never}), folder=place)
    assert (again.train, again.validation, again.test) == (first.train, first.validation, first.test)


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    run(mlp(), blobs(), folder=folder(tmp_path))
    with pytest.raises(ValueError, match=r"other settings \(seed\)"):
        run(mlp(), blobs(), folder=folder(tmp_path), seed=1)


def contents(place):
    return {file: file.read_bytes() for file in place.path.rglob("*") if file.is_file()}


@pytest.mark.parametrize(("first", "second"), [(0.5, 0.25), (0.5, None), (None, 0.5)])
def test_a_checkpoint_of_another_mask_is_refused(tmp_path, first, second):
    """It would train weights that the mask has never held at 0, or take the scores of one for those of another."""
    place, masks = folder(tmp_path), [d and prune(mlp(), density=d, method="random") for d in (first, second)]
    whole = run(mlp(), blobs(), folder=place, mask=masks[0])
    held, model = contents(place), mlp()
    with pytest.raises(ValueError, match=r"other settings \(mask\)"):
        run(model, blobs(), folder=place, mask=masks[1])
    assert second is not None or same(dict(model.state_dict()), dict(mlp().state_dict()))
    assert contents(place) == held
    assert run(mlp(), blobs(), folder=place, mask=masks[0]).test == whole.test


@pytest.mark.parametrize("backwards", [False, True])
def test_a_checkpoint_of_settings_that_came_later_is_refused(tmp_path, backwards):
    first, second = [replace(TRAINING, decay="one-cycle", sync_bn=False), TRAINING][:: -1 if backwards else 1]
    run(mlp(), blobs(), first, folder=folder(tmp_path))
    model = mlp()
    with pytest.raises(ValueError, match=r"other settings \(decay\)"):
        run(model, blobs(), second, folder=folder(tmp_path))
    assert same(dict(model.state_dict()), dict(mlp().state_dict())), "a refused checkpoint leaves the network alone"


def test_lost_metrics_are_noticed(tmp_path):
    place = folder(tmp_path)
    run(mlp(), blobs(), folder=place)
    (place.path / "metrics.jsonl").unlink()
    with pytest.raises(ValueError, match=r"metrics\.jsonl has 0 lines"):
        run(mlp(), blobs(), folder=place)
