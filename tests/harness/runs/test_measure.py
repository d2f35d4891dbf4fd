import json
from dataclasses import replace

import pytest
import torch

import skeletal
from skeletal.core.diagnosis.saliency import measure_saliency
from skeletal.harness.config import Pruning, Setup, resolve
from skeletal.harness.data import Stream
from skeletal.harness.runs import finding, measure

SETUP = Setup(device="cpu")
FORCE = resolve(Pruning(density=0.05, steps=3), "quick")
DENSE = resolve(Pruning(method="dense"), "quick")


def measured(root, setup=SETUP, pruning=FORCE, **options):
    return measure.measure(setup, pruning, root=root, progress=False, measure_batches=2, **options)


def never(*_, **__):
    raise AssertionError("done again")


@pytest.fixture(scope="module")
def force(tmp_path_factory):
    return measured(tmp_path_factory.mktemp("runs"))


def test_the_mask_is_that_of_a_run(force):
    folder, _ = force
    data = finding.load_data(SETUP)
    model = finding.create_model(SETUP, data)
    assert skeletal.Mask.load(folder.path / "mask.safetensors") == finding.find_mask(
        model, data, SETUP, FORCE, progress=False
    )


def test_the_result_tells_what_is_left(force):
    folder, result = force
    mask = skeletal.Mask.load(folder.path / "mask.safetensors")
    assert (result["model"], result["data"], result["method"], result["seed"]) == ("vgg-mini", "digits", "force", 0)
    assert result["kept"] == mask.kept == round(0.05 * result["prunable"])
    assert result["densities"] == pytest.approx({name: keep.double().mean().item() for name, keep in mask.items()})
    assert result["empty_layers"] == [] and result["connected"] is True and result["filled"] == 0
    assert 0 < result["effective_density"] <= result["density"]
    assert 0 < result["macs"]["forward_kept"] < result["macs"]["forward_dense"]
    assert result["prune_seconds"] > 0
    assert json.loads((folder.path / "result.json").read_text()) == result == folder.result()


def test_the_trace_follows_the_schedule_down_to_the_mask(force):
    _, result = force
    kept = [row["kept"] for row in result["trace"]]
    assert [row["step"] for row in result["trace"]] == [1, 2, 3]
    assert kept == sorted(kept, reverse=True) and kept[-1] == result["kept"]
    assert result["trace"][-1]["densities"] == result["densities"]
    sizes = {name: keep.numel() for name, keep in skeletal.Mask.load(force[0].path / "mask.safetensors").items()}
    for row in result["trace"]:
        assert sum(density * sizes[name] for name, density in row["densities"].items()) == pytest.approx(row["kept"])


def test_saliency_is_measured_on_other_batches_than_pruned_on(force, monkeypatch):
    folder, result = force
    mask = skeletal.Mask.load(folder.path / "mask.safetensors")
    data = finding.load_data(SETUP)
    model = finding.create_model(SETUP, data)
    on_those_pruned_on = measure_saliency(model, Stream(data.train, 128, SETUP.seed), mask, count=2)
    assert on_those_pruned_on.force != result["force_saliency"]
    again = measure.measured(model, data, mask, seed=SETUP.seed, batches=2)
    assert {name: result[name] for name in again} == again


def test_dense_is_measured_too(tmp_path):
    _, result = measured(tmp_path, pruning=DENSE)
    assert result["method"] == "dense" and result["density"] == 1.0 and result["trace"] == []
    assert result["kept"] == result["prunable"] and set(result["densities"].values()) == {1.0}
    assert result["force_saliency"] > 0 and result["prune_seconds"] is None


def test_a_finished_measurement_is_only_read(force, monkeypatch):
    folder, result = force
    for name in ("load_data", "create_model", "find_mask", "measured"):
        monkeypatch.setattr(measure, name, never)
    again, same = measured(folder.path.parent)
    assert again.path == folder.path and same == result
    assert measure.measure_folder(SETUP, FORCE, root=folder.path.parent, measure_batches=2).path == folder.path
    elsewhere = replace(SETUP, device="auto", workers=7)
    assert measured(folder.path.parent, elsewhere)[1] == result


def test_what_changes_the_numbers_changes_the_folder(tmp_path):
    def path(setup=SETUP, pruning=FORCE, batches=2):
        return measure.measure_folder(setup, pruning, root=tmp_path, measure_batches=batches).path

    others = [
        path(replace(SETUP, seed=1)),
        path(pruning=replace(FORCE, steps=4)),
        path(pruning=DENSE),
        path(pruning=replace(DENSE, bn_mode="eval")),
        path(batches=3),
        path(),
    ]
    assert len(set(others)) == len(others)


def test_a_collapsed_mask_is_a_result(tmp_path):
    with pytest.warns(skeletal.CollapseWarning):
        _, result = measured(tmp_path, pruning=resolve(Pruning(method="snip", density=0.002), "quick"))
    assert result["connected"] is False and result["empty_layers"]
    assert result["effective_density"] == 0.0 and result["force_saliency"] == pytest.approx(0, abs=1e-6)


def test_only_weights_of_the_last_mask_count_as_filled_in():
    mask = skeletal.Mask({"a": torch.ones(4)}, {"steps": 2, "filled": [{"step": 1, "weights": 3}]})
    assert measure._filled(mask) == 0
    mask.metadata["filled"].append({"step": 2, "weights": 1})
    assert measure._filled(mask) == 1


def test_an_unknown_method_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"unknown method 'forc'\. Did you mean 'force'"):
        measured(tmp_path, pruning=replace(FORCE, method="forc"))
    assert not list(tmp_path.iterdir())
