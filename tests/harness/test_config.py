import json
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest

from skeletal.harness import config, data, models
from skeletal.harness.config import AS_IN, ITERATIVE, ONE_SHOT, PRESETS, Pruning, Setup, Training, resolve
from skeletal.harness.names import DATA_SETS, NETWORKS
from skeletal.harness.runs.experiment import identity
from skeletal.harness.training.rate import milestones


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("record", [Pruning(), Training()])
def test_every_preset_fills_in_everything(preset, record):
    resolved = asdict(resolve(record, preset))
    assert [name for name, value in resolved.items() if value is None] == (
        ["sparsity", "pattern", "micro_batch", "rewind_epochs"]
        if isinstance(record, Pruning)
        else ["update_every", "update_fraction", "update_end", "update_density"]  # of a mask that does not move
    )
    assert json.loads(json.dumps(resolved))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_names_fields_that_exist(preset):
    assert PRESETS[preset].keys() <= {f.name for record in (Setup, Pruning, Training) for f in fields(record)}


@pytest.mark.parametrize(
    "preset, epochs, decay_at, batch_size, weight_decay, steps, batches",
    [
        ("cifar10", 350, [150, 250], 128, 5e-4, 300, 1),
        ("cifar100", 350, [150, 250], 128, 5e-4, 60, 10),
        ("tiny-imagenet", 300, [150, 225], 128, 5e-4, 60, 20),
        ("imagenet", 90, [30, 60], 256, 1e-4, 60, 40),
    ],
)
def test_the_papers_settings(preset, epochs, decay_at, batch_size, weight_decay, steps, batches):
    training, pruning = resolve(Training(), preset), resolve(Pruning(), preset)
    assert training.epochs == epochs and milestones(training) == decay_at
    assert (training.batch_size, training.lr, training.momentum) == (batch_size, 0.1, 0.9)
    assert training.weight_decay == weight_decay
    assert (pruning.steps, pruning.batches_per_step, pruning.prune_batch_size) == (steps, batches, batch_size)
    assert resolve(Setup(), preset).validation == (0 if preset == "imagenet" else 0.1)
    assert resolve(Setup(validation=0.2), preset).validation == 0.2


def test_fewer_epochs_keep_the_proportion():
    assert milestones(resolve(Training(epochs=35), "cifar10")) == [15, 25]


def test_milestones_are_refused_where_the_rate_falls_otherwise():
    with pytest.raises(ValueError, match="one-cycle has no milestones"):
        resolve(Training(decay="one-cycle", milestones=(0.3,)), "quick")
    once = resolve(Training(decay="one-cycle"), "quick")
    assert resolve(once, "quick") == once


def test_what_was_said_wins_and_nothing_else_changes():
    said = Training(epochs=7, lr=0.0, milestones=(), bf16=True)
    resolved = resolve(said, "imagenet")
    assert (resolved.epochs, resolved.lr, resolved.milestones, resolved.bf16) == (7, 0.0, (), True)
    assert resolved.batch_size == 256
    assert said.batch_size is None
    assert resolve(Setup(seed=3), "quick") == Setup(seed=3, validation=0.1)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("method", [*ONE_SHOT, "force", "grasp-it", "dense"])
def test_one_shot_methods_take_one_step(preset, method):
    steps = resolve(Pruning(method=method), preset).steps
    assert steps == (1 if method in ONE_SHOT else PRESETS[preset]["steps"])
    assert resolve(Pruning(method=method, steps=5), preset).steps == 5  # to be refused by prune, not here


def test_only_rewinding_takes_its_epoch():
    assert resolve(Pruning(method="imp", rewind_epochs=3), "quick").rewind_epochs == 3
    for method in ("force", "snip", "dense"):
        with pytest.raises(ValueError, match=f"{method} rewinds nothing: leave --rewind-epochs out"):
            resolve(Pruning(method=method, rewind_epochs=3), "quick")


def test_the_methods_of_the_help_are_those_of_the_table():
    import skeletal

    assert set(ONE_SHOT) == {name for name, row in skeletal.METHODS.items() if row.one_shot}
    text = Path(config.__file__).read_text()
    listed = text.partition('"""force, ')[2].partition(";")[0]
    assert {"force", *listed.replace(",", " ").split()} == {*skeletal.METHODS, "snip-mb", "grasp-mb"}
    assert set(ITERATIVE) == set(skeletal.METHODS) - set(ONE_SHOT)
    assert resolve(Pruning(method="synflow"), "quick").steps == skeletal.METHODS["synflow"].steps


@pytest.mark.parametrize(
    ("written", "method", "batches"),
    [
        ("FORCE", "force", 1), ("GraSP_It", "grasp-it", 1), ("SNIP-MB", "snip", 300), ("grasp_mb", "grasp", 300),
        ("Iter SNIP", "force", 1), ("Dense", "dense", 1),
    ],
)  # fmt: skip
def test_methods_as_people_write_them(written, method, batches):
    pruning = resolve(Pruning(method=written), "cifar10")
    assert (pruning.method, pruning.batches_per_step) == (method, batches)


@pytest.mark.parametrize("given", [{}, {"steps": 5}, {"batches_per_step": 7}, {"steps": 5, "batches_per_step": 7}])
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("method", ["snip-mb", "grasp-mb"])
def test_many_batches_are_those_of_all_of_forces_steps(method, preset, given):
    force, many = (resolve(Pruning(method=name, **given), preset) for name in ("force", method))
    assert (many.steps, many.batches_per_step) == (1, force.steps * force.batches_per_step)
    assert resolve(many, preset) == many


def test_networks_and_data_sets_as_people_write_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    setup = resolve(Setup(model="VGG19_CIFAR", data="Fashion_MNIST"), "cifar10")
    assert (setup.model, setup.data) == ("vgg19-cifar", "fashion-mnist")
    for name in ("CIFAR10", "digits", "photos"):
        (tmp_path / name).mkdir()
    assert resolve(Setup(data="CIFAR10"), "cifar10").data == "CIFAR10"  # a folder's name is its own
    assert {resolve(Setup(data=as_typed), "cifar10").data for as_typed in ("photos", "photos/", "./photos")} == {
        "photos"
    }
    assert resolve(Setup(data="./digits"), "cifar10").data == "./digits"  # without the dot, another data set
    assert list(NETWORKS) == list(models.NAMES) and list(DATA_SETS) == list(data.NAMES)


@pytest.mark.parametrize(
    "code, choices",
    [
        ("paper", ("cross-entropy", "signed", "train", "plain")),
        ("force-code", ("nll", "signed", "train", "plain")),
        ("grasp-code", ("tempered", "signed", "train", "balanced")),
        ("synflow-code", ("cross-entropy", "signed", "eval", "plain")),
        ("pysnip", ("cross-entropy", "absolute", "train", "plain")),
    ],
)
def test_whose_choices_are_followed(code, choices):
    pruning = resolve(Pruning(as_in=code), "cifar10")
    assert (pruning.loss, pruning.average, pruning.bn_mode, pruning.sampling) == choices
    assert replace(pruning, as_in="paper", loss=None, average=None, bn_mode=None, sampling=None) == replace(
        resolve(Pruning(), "cifar10"), loss=None, average=None, bn_mode=None, sampling=None
    )  # and nothing else is touched
    said = resolve(Pruning(as_in=code, loss="cross-entropy", average="absolute", bn_mode="eval"), "cifar10")
    assert (said.loss, said.average, said.bn_mode, said.sampling) == ("cross-entropy", "absolute", "eval", choices[3])


def test_an_unknown_code_and_those_of_the_help():
    with pytest.raises(ValueError, match=r"unknown as-in 'force-cod'\. Did you mean 'force-code'\? There are paper, "):
        resolve(Pruning(as_in="force-cod"), "quick")
    text = Path(config.__file__).read_text().partition("the next four options take: ")[2].partition('"""')[0]
    assert all(code in text for code in AS_IN)


@pytest.mark.parametrize(
    "sparsity, density",
    [(0.9, 0.1), (0.95, 0.05), (0.98, 0.02), (0.99, 0.01), (0.995, 0.005), (0.999, 0.001), (0.25, 0.75), (0.0, 1.0)],
)
def test_sparsity_is_another_way_to_write_density(sparsity, density):
    assert resolve(Pruning(sparsity=sparsity), "quick").density == density


def test_sparsity_wins_over_the_presets_density_only():
    with pytest.raises(ValueError, match=r"not both \(density=0.1, sparsity=0.9\)"):
        resolve(Pruning(density=0.1, sparsity=0.9), "quick")


@pytest.mark.parametrize("record", [Pruning(), Pruning(sparsity=0.98), Training(epochs=3)])
def test_resolving_twice_changes_nothing(record):
    once = resolve(record, "cifar10")
    assert resolve(once, "cifar10") == once
    assert resolve(once, "imagenet") == once


def test_an_unknown_preset():
    with pytest.raises(
        ValueError,
        match=r"unknown preset 'cifar'\. Did you mean 'cifar10'\? There are cifar10, cifar10-short, cifar100",
    ):
        resolve(Training(), "cifar")


def test_records_cannot_be_changed():
    with pytest.raises(AttributeError):
        Setup().seed = 1
    assert replace(Setup(), seed=1).seed == 1


def test_a_pattern_has_one_name_and_suits_the_method():
    assert resolve(Pruning(pattern="Fan_In"), "quick").pattern == "fan-in"
    with pytest.raises(ValueError, match="unknown pattern '5:4'"):
        resolve(Pruning(pattern="5:4"), "quick")
    with pytest.raises(ValueError, match="imp prunes single weights"):
        resolve(Pruning(method="imp", pattern="2:4"), "quick")


@pytest.mark.parametrize("validation", [-0.1, 1, 1.5, float("nan")])
def test_what_is_held_out_is_a_fraction(validation):
    with pytest.raises(ValueError, match=r"validation is .*at least 0 and below 1"):
        resolve(Setup(validation=validation), "quick")


def test_a_run_that_holds_out_a_tenth_is_the_same_run_as_before_it_could_be_said():
    for setup in (Setup(), Setup(validation=0.1), resolve(Setup(), "cifar10")):
        assert "validation" not in identity(setup)
    assert identity(Setup(validation=0.0))["validation"] == 0
