import json
from dataclasses import replace

import pytest

from skeletal.harness.config import Pruning, Setup, Training, resolve
from skeletal.harness.runs.experiment import identity
from skeletal.harness.store.folders import RunFolder
from skeletal.study.beyond.advise import Advice, Line, recommend
from skeletal.study.beyond.hindsight import hindsight

SETUP, TRAINING = Setup(), resolve(Training(), "quick")
FORCE, SNIP = (resolve(Pruning(method=method), "quick") for method in ("force", "snip"))
ADVICE = Advice(SETUP, (FORCE, SNIP), (0.1, 0.02, 0.01), (0,))


def line(density, saliency, effective=1.0):
    return Line(density, True, effective, 0, saliency, saliency, None, None)


FOUND = {
    "force": [line(0.1, 0.5), line(0.02, 0.2), line(0.01, 0.05)],
    "snip": [line(0.1, 0.5), line(0.02, 0.04), line(0.01, 0.0, 0.1)],
}
ADVISED = {method: recommend(lines) for method, lines in FOUND.items()}  # 0.02 and 0.1


def leave(root, top1, pruning=None, seed=0, training=TRAINING, **change):
    """A run folder as training leaves it."""
    config = identity(Setup(seed=seed, **change), training)
    config |= {"method": "dense"} if pruning is None else identity(pruning)
    folder = RunFolder.open(root, "run", json.loads(json.dumps(config)))
    folder.finish({"test": {"top1": top1}})


def trained(root, force=(95, 94, 80), snip=(95, 93, 20)):
    leave(root, 96.0)
    for of, accuracies in ((FORCE, force), (SNIP, snip)):
        for density, top1 in zip(ADVICE.densities, accuracies, strict=True):
            if top1 is not None:
                leave(root, top1, resolve(Pruning(method=of.method, density=density), "quick"))
    return hindsight(ADVICE, FOUND, ADVISED, root)


def test_advice_that_was_right_and_advice_that_was_careful(tmp_path):
    found = trained(tmp_path)
    force, snip = found.verdicts["force"], found.verdicts["snip"]
    assert (force.advised, force.sound, force.steps, force.accuracy) == (0.02, 0.02, 0, 94)
    assert (snip.advised, snip.sound, snip.steps, snip.accuracy) == (0.1, 0.02, 1, 95)
    assert found.dense == 96
    assert "+1 densities" in found.table() and "94.00" in found.table(markdown=True)


def test_advice_that_went_too_far(tmp_path):
    force = trained(tmp_path, force=(95, 90, 80)).verdicts["force"]
    assert (force.sound, force.steps, force.accuracy) == (0.1, -1, 90)


def test_nothing_was_sound(tmp_path):
    force = trained(tmp_path, force=(90, 95, 80)).verdicts["force"]
    assert (force.sound, force.steps) == (None, None), "all above have to be sound, too"


def test_measures_rank_with_accuracy(tmp_path):
    correlations = trained(tmp_path).correlations
    assert correlations["saliency"] > 0.9 > correlations["worth"]


def test_densities_that_were_not_trained_do_not_count(tmp_path):
    force = trained(tmp_path, force=(95, None, 94)).verdicts["force"]
    assert (force.advised, force.sound, force.accuracy) == (0.02, 0.01, None)


def test_seeds_are_averaged_and_other_settings_are_passed_over(tmp_path):
    first = resolve(Pruning(density=0.1), "quick")
    leave(tmp_path, 90, first, seed=1)
    leave(tmp_path, 1, first, model="lenet5")
    leave(tmp_path, 1, first, data="fashion-mnist")
    leave(tmp_path, 1, resolve(Pruning(density=0.1, steps=7), "quick"))
    found = trained(tmp_path)
    assert sorted(found.accuracies["force"][0.1]) == [90, 95]


def test_runs_without_the_dense_network_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no finished runs of these methods and of the dense network for vgg-mini"):
        hindsight(ADVICE, FOUND, ADVISED, tmp_path)
    leave(tmp_path, 95, FORCE)
    leave(tmp_path, 95, SNIP)
    with pytest.raises(ValueError, match="no finished runs of the dense network"):
        hindsight(ADVICE, FOUND, ADVISED, tmp_path)


def test_recipes_are_not_mixed(tmp_path):
    leave(tmp_path, 50, FORCE, seed=1, training=resolve(Training(epochs=1), "quick"))
    with pytest.raises(ValueError, match=r"different recipes .epochs 1 and epochs 30"):
        trained(tmp_path)


def test_runs_of_another_kind_are_passed_over(tmp_path):
    first = resolve(Pruning(method="snip", density=0.1), "quick")
    moving = resolve(Training(update="set"), "quick")
    leave(tmp_path, 1, training=resolve(Training(update="gradual", update_density=0.1), "quick"))
    leave(tmp_path, 1, first, training=moving)
    for change in ({"pattern": "channels"}, {"best_of": 2}, {"micro_batch": 8}):
        leave(tmp_path, 1, replace(first, **change))
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "config.json").write_text('{"architectures": ["Bert"]}')
    found = trained(tmp_path)
    assert found.dense == 96 and found.accuracies["snip"][0.1] == [95]


@pytest.mark.parametrize("change", [{"decay": "one-cycle"}, {"bf16": True}, {"momentum": 0.5}, {"milestones": (0.9,)}])
def test_other_recipes_are_not_mixed(tmp_path, change):
    leave(tmp_path, 90, resolve(Pruning(method="snip", density=0.1), "quick"), training=replace(TRAINING, **change))
    with pytest.raises(ValueError, match=f"different recipes .*{next(iter(change))}"):
        trained(tmp_path)


def test_snip_on_one_batch_and_on_many_are_two_methods(tmp_path):
    many = resolve(Pruning(method="snip-mb"), "quick")
    advice = Advice(SETUP, (SNIP, many), (0.1,), (0,))
    assert advice.names == ("snip, batches_per_step=1", "snip, batches_per_step=60")
    leave(tmp_path, 96.0)
    leave(tmp_path, 80, replace(SNIP, density=0.1))
    leave(tmp_path, 90, replace(many, density=0.1))
    lines = {name: [line(0.1, 0.5)] for name in advice.names}
    found = hindsight(advice, lines, {name: recommend(each) for name, each in lines.items()}, tmp_path)
    assert [verdict.accuracy for verdict in found.verdicts.values()] == [80, 90]


def test_a_seed_that_was_trained_again_counts_once(tmp_path):
    first = resolve(Pruning(density=0.1), "quick")
    for every in (1, 2, 3):
        leave(tmp_path, 95, first, training=replace(TRAINING, test_every=every))
    leave(tmp_path, 85, first, seed=1)
    assert sorted(trained(tmp_path).accuracies["force"][0.1]) == [85, 95]
