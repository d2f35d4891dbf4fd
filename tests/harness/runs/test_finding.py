from dataclasses import asdict, replace

import pytest
import torch

from skeletal.harness.config import Pruning, Setup, resolve
from skeletal.harness.runs.finding import create_model, find_mask, load_data, pruning_batches

SETUP = Setup(device="cpu")


def fresh(setup=SETUP):
    data = load_data(setup)
    return create_model(setup, data), data


def test_find_mask_takes_the_settings_and_leaves_the_weights():
    model, data = fresh()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pruning = resolve(
        Pruning(density=0.1, steps=2, schedule="linear", batches_per_step=3, prune_batch_size=32, bn_mode="eval"),
        "quick",
    )
    mask = find_mask(model, data, SETUP, pruning, progress=False)
    assert mask.kept == round(0.1 * mask.total)
    expected = {**asdict(pruning), "seed": 0, "network": "vgg-mini", "data": "digits"}
    del expected["sparsity"], expected["on_collapse"], expected["loss"], expected["rewind_epochs"], expected["best_of"]
    expected["engine"] = expected.pop("scoring_engine")
    assert {name: mask.metadata[name] for name in expected} == expected
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("sampling", ["plain", "balanced"])
def test_a_mask_is_found_on_other_batches_than_training_begins_with(sampling):
    pruning = resolve(Pruning(method="force", sampling=sampling), "quick")
    _, data = fresh()
    found_on = pruning_batches(data, SETUP, pruning, SETUP.seed)
    trained_on = data.train.batches(pruning.prune_batch_size, train=True, seed=SETUP.seed, epoch=0)
    assert not any(torch.equal(ours[1], theirs[1]) for ours, theirs in zip(found_on, trained_on, strict=False))


def test_the_official_codes_loss_and_the_absolute_average_give_other_masks():
    found = []
    for options in ({}, {"loss": "nll"}, {"average": "absolute"}):
        pruning = resolve(Pruning(method="snip", batches_per_step=2, **options), "quick")
        found.append(find_mask(*fresh(), SETUP, pruning, progress=False))
    assert [mask.metadata["loss"] for mask in found] == ["default", "nll_loss", "default"]
    assert found[0] != found[1] and found[0] != found[2]


def test_the_seed_is_that_of_weights_batches_and_scores():
    masks = []
    for seed in (0, 0, 1):
        setup = replace(SETUP, seed=seed)
        snip = resolve(Pruning(method="snip"), "quick")
        masks.append(find_mask(*fresh(setup), setup, snip, progress=False))
    assert masks[0] == masks[1] != masks[2]


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match=r"unknown method 'forc'\. Did you mean 'force'\? There are .*force"):
        find_mask(*fresh(), SETUP, resolve(Pruning(method="forc"), "quick"))
