"""Which step is taken: compiled where it is asked for or pays, eager where nothing can be recorded, and it says why."""

from dataclasses import replace

import pytest

from skeletal.harness.training import choose_step
from tests.harness.training.blobs import folder, same
from tests.harness.training.recorded import BATCH, DATA, TRAINING, Uncaptured, network, run, static

__all__ = ["static"]


@pytest.fixture
def calls(monkeypatch):
    """The networks that were to be compiled, which come back as they are."""
    calls = []

    class Compiled:
        """As torch's: with a `__len__`, which fails where the network has none: neither true nor false."""

        def __init__(self, model):
            calls.append(model)
            self._model = model

        def __call__(self, x):
            return self._model(x)

        def __len__(self):
            raise TypeError("Network does not support len()")

    monkeypatch.setattr(choose_step, "compiled_by_torch", Compiled)
    return calls


def test_the_compiled_network_is_taken_where_it_pays(tmp_path, static, calls, monkeypatch):
    expected = run()
    for compile, about in (("yes", "graph, compiled"), ("no", "graph"), ("auto", "graph")):  # 3 epochs do not pay
        static()
        place = folder(tmp_path, compile)
        model = run(replace(TRAINING, compile=compile), folder=place)
        assert same(dict(model.state_dict()), dict(expected.state_dict()))
        assert [row["step"] for row in place.metrics()] == [about] * 3
    assert len(calls) == 1
    monkeypatch.setattr(choose_step, "COMPILE_SECONDS", 0.0)
    monkeypatch.setattr(choose_step.Recording, "seconds", lambda self, run: 1.0)
    place = folder(tmp_path, "as slow")
    run(folder=place)
    assert place.metrics()[0]["step"] == "graph (not compiled: 1000.00 ms a step, 1000.00 without)"


def test_without_a_recording_the_compiled_network_is_taken_where_it_is_asked_for(tmp_path, calls):
    expected = run()
    model = run(replace(TRAINING, compile="yes"), folder=folder(tmp_path))
    assert same(dict(model.state_dict()), dict(expected.state_dict())) and calls == [model]
    assert folder(tmp_path).metrics()[0]["step"] == "eager, compiled: no CUDA device"
    run(replace(TRAINING, compile="yes", engine="sparse"))
    assert calls == [model]


def test_where_compiling_fails_the_network_is_trained_without(tmp_path, monkeypatch):
    def raises(model):
        def fails(x):
            model[1].running_mean.add_(1)  # half-way through
            raise RuntimeError("no C++ compiler found")

        return fails

    expected = run()
    monkeypatch.setattr(choose_step, "compiled_by_torch", raises)
    with pytest.warns(UserWarning, match=r"without torch.compile \(no C\+\+ compiler found\)"):
        model = run(replace(TRAINING, compile="yes"), folder=folder(tmp_path))
    assert same(dict(expected.state_dict()), dict(model.state_dict()))
    about = folder(tmp_path).metrics()[0]["step"]
    assert about == "eager: no CUDA device (not compiled: no C++ compiler found)"


@pytest.mark.parametrize("kind", ["wrong", "raises"])
def test_a_compiler_that_fails_costs_no_more_than_its_time(tmp_path, static, monkeypatch, kind):
    def wrong(model):
        return lambda x: model(x).flip(1)

    def raises(model):
        raise RuntimeError("no C compiler found")

    monkeypatch.setattr(choose_step, "compiled_by_torch", {"wrong": wrong, "raises": raises}[kind])
    expected = run()
    static()
    with pytest.warns(UserWarning, match="captured without torch.compile"):
        model = run(replace(TRAINING, compile="yes"), folder=folder(tmp_path))
    assert same(dict(model.state_dict()), dict(expected.state_dict()))
    assert folder(tmp_path).metrics()[0]["step"].startswith("graph (not compiled: ")


def test_where_rounding_drowns_a_step_nothing_is_compiled_that_could_not_be_checked(
    tmp_path, static, calls, monkeypatch
):
    coarse = replace(TRAINING, compile="yes", bf16=True)
    monkeypatch.setattr(choose_step, "MOST", 1e-6)
    static()
    run(coarse, folder=folder(tmp_path))
    said = "graph (not compiled: rounding to bfloat16 alone moves a step by 0.0 of its length)"
    assert folder(tmp_path).metrics()[0]["step"] == said and not calls
    static()
    run(replace(coarse, bf16=False), folder=folder(tmp_path, "exact"))
    assert folder(tmp_path, "exact").metrics()[0]["step"] == "graph, compiled"


def test_compiling_is_expected_to_pay_in_long_runs_of_large_networks():
    model = network()  # three layers: three seconds to compile
    assert choose_step.pays(TRAINING, model, step_seconds=0.01, steps_left=3001)
    assert not choose_step.pays(TRAINING, model, step_seconds=0.01, steps_left=2999)
    assert choose_step.pays(replace(TRAINING, compile="yes"), model, 0.0, 0)
    assert not choose_step.pays(replace(TRAINING, compile="no"), model, 1.0, 10**9)


def test_what_is_not_recorded_says_why(monkeypatch):
    recorder = Uncaptured()
    batching = choose_step.Batching(DATA.train, BATCH, 0, False, lambda: None)
    assert choose_step.why_eager(TRAINING, batching, recorder) is None
    assert choose_step.why_eager(TRAINING, batching, None) == "no CUDA device"
    assert choose_step.why_eager(replace(TRAINING, graph="no"), batching, recorder) == "--graph no"
    assert choose_step.why_eager(TRAINING, replace(batching, split=object()), recorder) == "images are not in memory"
    monkeypatch.setattr(choose_step, "ranks", lambda: 2)
    assert choose_step.why_eager(TRAINING, batching, recorder) == "2 processes"
