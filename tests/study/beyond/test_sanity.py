from dataclasses import replace

import pytest
import torch

from skeletal.core.masks.compare import layer_agreement, overlap
from skeletal.core.masks.mask import Mask
from skeletal.core.pruning.schedules import exponential, visit
from skeletal.harness import data as data_sets
from skeletal.harness.config import Pruning, Setup, Training, resolve
from skeletal.harness.runs import finding
from skeletal.study.beyond import sanity
from skeletal.study.beyond.sanity import ORIGINAL, SanityChecks, answer, difference, one_fewer

pytestmark = pytest.mark.filterwarnings("ignore::skeletal.CollapseWarning")
SETUP = Setup(device="cpu")
FORCE = resolve(Pruning(density=0.02, steps=3, prune_batch_size=64), "quick")
TRAINING = resolve(Training(epochs=1, batch_size=512, engine="dense"), "quick")
PLAN = SanityChecks(SETUP, FORCE, TRAINING, seeds=(0, 1), shuffles=2)


@pytest.fixture(scope="module")
def masks():
    return sanity.masks(SETUP, data_sets.load("digits"), FORCE, 2)


def counts(mask):
    return {name: int(keep.sum()) for name, keep in mask.items()}


def test_the_original_is_what_a_run_finds(masks):
    data = finding.load_data(SETUP)
    model = finding.create_model(SETUP, data)
    assert masks[ORIGINAL] == finding.find_mask(model, data, SETUP, FORCE, progress=False)


def test_every_mask_keeps_as_many_weights(masks):
    assert {mask.kept for mask in masks.values()} == {masks[ORIGINAL].kept}


@pytest.mark.parametrize(
    "name, like",
    [("shuffled 1", ORIGINAL), ("shuffled 2", ORIGINAL), ("SNIP's positions", ORIGINAL), ("SNIP's layers", "SNIP")],
)
def test_what_is_taken_from_whom(masks, name, like):
    assert counts(masks[name]) == counts(masks[like])
    assert masks[name] != masks[like]


def test_positions_are_snips_and_the_methods_own(masks):
    """More of the weights are SNIP's than chance would give; and where both keep as many, the layer is SNIP's own."""
    assert overlap(masks["SNIP's positions"], masks["SNIP"]) > overlap(masks["shuffled 1"], masks["SNIP"])
    assert overlap(masks["SNIP's layers"], masks[ORIGINAL]) > overlap(masks["SNIP"], masks[ORIGINAL])


def test_only_what_is_named_differs(masks):
    others = ["shuffled 1", "SNIP", "random", "other data", "one weight fewer"]
    assert all(masks[name] != masks[ORIGINAL] for name in others)
    assert layer_agreement(masks["other data"], masks[ORIGINAL]) > layer_agreement(masks["random"], masks[ORIGINAL])


def test_masks_may_be_trained_on_other_weights_without_a_warning(masks):
    assert all("seed" not in mask.metadata for mask in masks.values())
    assert len({mask.metadata["method"] for mask in masks.values()}) == len(masks) - 1, "two shuffles share a name"


def test_one_weight_fewer_at_every_step_but_the_last():
    usual, fewer = exponential(1000, 10, 4), visit(one_fewer(exponential), 1000, 10, 4)
    assert [a - b for a, b in zip(usual, fewer, strict=True)] == [1, 1, 1, 0]
    assert one_fewer(exponential)(10, 10, 2) == [10, 10]
    assert one_fewer(exponential)(10, 3, 1) == [3]


def test_runs_are_listed_once(tmp_path):
    for seed, job in zip(PLAN.seeds, PLAN.mask_jobs(), strict=True):
        folder = job.folder(tmp_path)
        folder.path.mkdir(parents=True)
        generator = torch.Generator().manual_seed(seed)
        for name in ("as found", "shuffled 1", "shuffled 2", "SNIP's positions", "SNIP's layers", "SNIP", "random",
                     "other data", "one weight fewer"):  # fmt: skip
            Mask({"a": torch.rand(40, generator=generator) < 0.5}).save(job.file(tmp_path, name))
    jobs = PLAN.jobs(tmp_path)
    trained = [job for job in jobs if job.kind == "train"]
    assert len(jobs) == 2 * 10 + 2 * 11 and len(trained) == 2 * 11
    assert len({(job.folder(tmp_path).path) for job in jobs}) == len(jobs)
    assert PLAN.results(tmp_path) == [], "nothing has run"


@pytest.mark.parametrize("method, ranked", [("phew", False), ("npb", False), ("force-floor", True), ("synflow", True)])
def test_only_methods_that_rank_all_weights_fill_snips_layers(tmp_path, method, ranked):
    asked = resolve(Pruning(method=method, density=0.05, prune_batch_size=64), "quick")
    asked = asked if asked.steps == 1 else replace(asked, steps=3)
    found = sanity.masks(SETUP, data_sets.load("digits"), asked, 1)
    assert ("SNIP's layers" in found) == ranked
    listed = {job.mask.name for job in replace(PLAN, pruning=asked, shuffles=1).jobs(tmp_path) if job.mask is not None}
    assert len(listed) == len(found)


def row(check, seed, accuracy):
    return {"check": check, "seed": seed, "weights": seed, "accuracy": accuracy}


def test_a_clear_difference_and_one_that_is_not():
    rows = [row(ORIGINAL, seed, 90.0) for seed in range(3)]
    rows += [row("random", seed, 50.0 + seed) for seed in range(3)]
    rows += [row("shuffled", seed, 90.0 + change) for seed, change in enumerate((1, -1, 0.3))]
    cost, half = difference(rows, "random")
    assert cost == 39 and half == pytest.approx(4.303 * 1 / 3**0.5, rel=1e-3)
    assert answer(rows) == (
        "shuffled: not clear of 0, +0.10 ± 2.52 points of accuracy (95% confidence)\n"
        "random: costs, -39.00 ± 2.48 points of accuracy (95% confidence)"
    )


def test_shuffles_of_a_seed_count_once():
    rows = [row(ORIGINAL, seed, 90.0) for seed in (0, 1)]
    rows += [row("shuffled", seed, value) for seed, value in ((0, 80), (0, 90), (1, 86))]
    assert difference(rows, "shuffled")[0] == 4.5
    assert difference(rows[:3], "shuffled") is None


def test_what_is_refused():
    with pytest.raises(ValueError, match="at least two different ones"):
        replace(PLAN, seeds=(3,))
    with pytest.raises(ValueError, match="shuffles is 0"):
        replace(PLAN, shuffles=0)
    with pytest.raises(ValueError, match="leave pattern='2:4' out"):
        replace(PLAN, pruning=replace(PLAN.pruning, pattern="2:4"))
