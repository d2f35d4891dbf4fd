"""The engine in training: the same as dense, the same after an interruption, and no mixture of the two."""

import json
import signal
import warnings
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from skeletal.core.masks.mask import Mask
from skeletal.engine import autotune
from skeletal.engine.host.availability import Availability
from skeletal.harness.config import Pruning, Setup, Training, resolve
from skeletal.harness.console.interrupt import Interrupted
from skeletal.harness.runs import experiment, finding, review
from skeletal.harness.training import checkpoint
from skeletal.harness.training.engines import engine_for
from tests.cases import convnet, random_mask
from tests.harness.training.blobs import TRAINING, blobs, folder, run, same, timeless

IMAGES = (3, 6, 6)
SPARSE = replace(TRAINING, engine="sparse")
AUTO = replace(TRAINING, engine="auto")
CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def mixed(monkeypatch, tmp_path):
    """Convolutions measure faster sparse, the linear layer dense; the calls that were made."""
    calls = []

    def layer_times(layer, shape):
        calls.append(shape)
        return (2.0, 1.0) if len(shape) == 2 else (1.0, 2.0)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(autotune, "layer_times", layer_times)
    monkeypatch.setattr(autotune, "step_ms", lambda network, *_: 1.0 if network.chosen.startswith("each") else 2.0)
    return calls


def half():
    return Mask(random_mask(convnet(), 0.5))


def stopping(at):
    return blobs(IMAGES, before={at: lambda: signal.raise_signal(signal.SIGINT)})


def stopped(training, place, **options):
    with pytest.raises(Interrupted):
        run(convnet(), stopping((1, 2)), training, mask=half(), folder=place, **options)
    return checkpoint.load(place.path)


def momenta(state):
    return {key: entries["momentum_buffer"] for key, entries in state["optimizer"]["state"].items()}


def test_sparse_trains_the_users_model_as_dense_does(tmp_path):
    dense, sparse, mask = convnet(), convnet(), half()
    gentle = {"lr": 0.01, "epochs": 2}
    expected = run(dense, blobs(IMAGES), replace(TRAINING, **gentle), mask=mask)
    found = run(sparse, blobs(IMAGES), replace(SPARSE, **gentle), mask=mask, folder=folder(tmp_path))
    assert (expected.engine, found.engine) == ("dense", "sparse")
    assert sparse.training
    torch.testing.assert_close(sparse.state_dict(), dense.state_dict(), rtol=1e-3, atol=1e-5)
    assert found.test.loss == pytest.approx(expected.test.loss, rel=1e-3)
    mask.check(sparse)
    assert same(load_file(folder(tmp_path).path / "model.safetensors"), dict(sparse.state_dict()))
    assert {row["engine"] for row in folder(tmp_path).metrics()} == {"sparse"}


def test_a_checkpoint_has_the_users_names_and_momentum_of_kept_weights_only(tmp_path):
    mask = half()
    state = stopped(SPARSE, folder(tmp_path))
    assert {name: value.shape for name, value in state["model"].items()} == {
        name: value.shape for name, value in convnet().state_dict().items()
    }
    assert not any(state["model"][name][~keep].any() for name, keep in mask.items())
    sizes = {name: value.shape for name, value in convnet().named_parameters()}
    sizes |= {name: (int(keep.sum()),) for name, keep in mask.items()}
    assert {name: tuple(value.shape) for name, value in momenta(state).items()} == {
        n: tuple(s) for n, s in sizes.items()
    }


@pytest.mark.parametrize("training", [SPARSE, AUTO], ids=["sparse", "auto"])
def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path, mixed, monkeypatch, training):
    whole, parts = folder(tmp_path, "whole"), folder(tmp_path, "parts")
    expected, resumed = convnet(), convnet()
    engine = run(expected, blobs(IMAGES), training, mask=half(), folder=whole).engine
    assert engine == {"sparse": "sparse", "auto": "auto: each as was faster"}[training.engine]
    assert stopped(training, parts)["engine"]["asked"] == training.engine

    def never(*_):
        raise AssertionError("measured again")

    monkeypatch.setattr(autotune, "step_ms", never)
    monkeypatch.setattr(autotune, "remembered", never)
    result = run(resumed, blobs(IMAGES), AUTO, mask=half(), folder=parts)
    assert result.engine == engine
    assert same(dict(expected.state_dict()), dict(resumed.state_dict()))
    a, b = checkpoint.load(whole.path), checkpoint.load(parts.path)
    for part in ("engine", "model", "optimizer", "scheduler", "rng"):
        assert same(a[part], b[part]), part
    assert timeless(whole.metrics()) == timeless(parts.metrics())


def test_auto_takes_for_each_layer_what_was_faster(tmp_path, mixed):
    run(convnet(), blobs(IMAGES), AUTO, mask=half(), folder=folder(tmp_path))
    paths = checkpoint.load(folder(tmp_path).path)["engine"]["paths"]
    assert paths == {"0": "sparse", "3": "sparse", "8": "dense"}
    assert {shape[0] for shape in mixed} == {16}  # the batch size of training


@pytest.mark.parametrize("mask", [None, "unavailable"])
def test_a_run_whose_engine_came_to_dense_goes_on_as_it_was_asked_for(tmp_path, monkeypatch, mask):
    if mask is not None:
        monkeypatch.setattr("skeletal.engine.available", lambda maps: Availability("it does not work here"))
    options = {} if mask is None else {"mask": half()}
    place = folder(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = run(convnet(), blobs(IMAGES), SPARSE, **options)
        with pytest.raises(Interrupted):
            run(convnet(), stopping((1, 2)), SPARSE, folder=place, **options)
        assert checkpoint.load(place.path)["engine"] == {"asked": "sparse"}
        monkeypatch.undo()  # even where the engine works by now: the optimizer's state is a dense network's
        found = run(convnet(), blobs(IMAGES), SPARSE, folder=place, **options)
    assert found.engine == expected.engine == "dense" and found.test == expected.test


@pytest.mark.parametrize(("begun", "asked"), [(SPARSE, TRAINING), (TRAINING, SPARSE)], ids=["dense", "sparse"])
def test_a_run_does_not_go_on_with_another_engine(tmp_path, begun, asked):
    before = stopped(begun, folder(tmp_path))
    with pytest.raises(ValueError, match=f"began with --engine {begun.engine}.*delete the checkpoint"):
        run(convnet(), blobs(IMAGES), asked, mask=half(), folder=folder(tmp_path))
    assert same(checkpoint.load(folder(tmp_path).path), before)


def test_auto_goes_on_with_a_checkpoint_from_before_there_was_an_engine(tmp_path):
    place = folder(tmp_path)
    state = stopped(TRAINING, place)
    del state["engine"], state["format"]
    checkpoint.save(place.path, state)
    assert run(convnet(), blobs(IMAGES), AUTO, mask=half(), folder=place).engine == "dense"


def test_momentum_of_other_shapes_is_refused(tmp_path):
    place = folder(tmp_path)
    state = stopped(SPARSE, place)
    state["optimizer"]["state"]["0.weight"]["momentum_buffer"] = torch.zeros(3)
    del state["format"]
    checkpoint.save(place.path, state)
    with pytest.raises(ValueError, match=r"momentum_buffer of 0\.weight has shape \(3,\).*needs \(\d+,\)"):
        run(convnet(), blobs(IMAGES), SPARSE, mask=half(), folder=place)


def test_sparse_layers_keep_maps_in_bfloat16_under_autocast_and_parameters_in_float32():
    models = convnet(), convnet()
    for model, bf16 in zip(models, (False, True), strict=True):
        run(model, blobs(IMAGES), replace(SPARSE, bf16=bf16), mask=half())
    states = [dict(model.state_dict()) for model in models]
    assert not same(*states)
    for name, value in states[0].items():
        assert states[1][name].dtype == value.dtype
        torch.testing.assert_close(states[1][name], value, rtol=0.1, atol=0.02)


def test_without_a_mask_there_is_nothing_to_make_sparse(tmp_path):
    result = run(convnet(), blobs(IMAGES), SPARSE, folder=folder(tmp_path))
    assert result.engine == "dense"


def test_a_gpu_trains_dense_and_says_so_but_does_not_go_on_with_what_a_cpu_began():
    model, mask = convnet(), half()

    def never():
        raise AssertionError("no example is needed")

    with pytest.warns(UserWarning, match="for CPUs: cuda computes with dense") as said:
        engines = [engine_for(model, mask, asked, device=GPU, example=never) for asked in ("sparse", "auto")]
    assert all(engine.network is model and engine.name == "dense" for engine in engines) and len(said) == 1
    begun = engine_for(model, mask, "sparse", device=CPU, example=lambda: torch.zeros(2, *IMAGES))
    with pytest.raises(ValueError, match="began on a CPU with --engine sparse, which cuda does not have"):
        engine_for(model, mask, "auto", device=GPU, example=never, earlier=begun.choice)


def test_a_network_that_cannot_be_traced_is_trained_all_the_same(tmp_path):
    class Branching(nn.Sequential):
        def forward(self, x):
            return super().forward(x if x.mean() > -9 else -x)

    mask, sparse, dense = half(), Branching(*convnet()), Branching(*convnet())
    gentle = {"lr": 0.01, "epochs": 1}
    result = run(sparse, blobs(IMAGES), replace(SPARSE, **gentle), mask=mask)
    run(dense, blobs(IMAGES), replace(TRAINING, **gentle), mask=mask)
    assert result.engine == "sparse"
    torch.testing.assert_close(sparse.state_dict(), dense.state_dict(), rtol=1e-3, atol=1e-5)


def test_a_sparse_run_from_end_to_end(tmp_path):
    training = resolve(Training(epochs=1, batch_size=512, engine="sparse"), "quick")
    pruning = resolve(Pruning(method="random", density=0.05), "quick")
    place, result = experiment.run(Setup(device="cpu"), pruning, training, root=tmp_path, progress=False)
    assert result["engine"] == "sparse" and result["seconds_per_epoch"] > 0
    assert json.loads((place.path / "result.json").read_text()) == result
    Mask.load(place.path / "mask.safetensors").check(_loaded(place.path))
    again = {engine: review.evaluate_run(place.path, engine=engine) for engine in ("auto", "sparse", "dense")}
    assert asdict(again["auto"]) == asdict(again["sparse"]) == result["test"]
    assert again["dense"].loss == pytest.approx(result["test"]["loss"], rel=1e-4)
    with pytest.raises(ValueError, match="unknown engine 'spars'"):
        review.evaluate_run(place.path, engine="spars")


def _loaded(path: Path) -> nn.Module:
    setup = Setup(device="cpu")
    model = finding.create_model(setup, finding.load_data(setup))
    model.load_state_dict(load_file(path / "model.safetensors"))
    return model
