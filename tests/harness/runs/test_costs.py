"""What runs record to have cost, against counts by hand of what they have done."""

import json
import signal
from dataclasses import replace

import pytest
import torch

import skeletal
from skeletal.core.diagnosis.macs import count_macs
from skeletal.core.masks.mask import Mask
from skeletal.harness.config import Pruning, Training, resolve
from skeletal.harness.console.interrupt import Interrupted
from skeletal.harness.ledger import COUNTS, Cost, Ledger
from skeletal.harness.runs import experiment
from skeletal.harness.runs.finding import find_mask
from skeletal.harness.training import checkpoint
from tests.cases import convnet
from tests.harness.runs.test_finding import SETUP, fresh
from tests.harness.training.blobs import HalfMask, blobs, folder, mlp, run
from tests.harness.training.test_moving import GENTLE, IMAGES, MOVING, start

DENSE, FIRST = 8 * 16 + 16 * 3, 8 * 16  # multiply-adds of `mlp`, and of its first layer
HALF = 4 * 16 + 16 * 3  # under a `HalfMask`
EXAMPLES, SCORED = 3 * 70, 3 * 20 + 31


def found(**options):
    model, data = fresh()
    pruning = resolve(Pruning(density=0.1, steps=3, prune_batch_size=32, batches_per_step=2, **options), "quick")
    masks = []
    mask = find_mask(model, data, SETUP, pruning, progress=False, on_step=lambda step: masks.append(step.mask))
    whole = {name: torch.ones_like(keep) for name, keep in mask.items()}
    macs = [count_macs(model.eval(), keep, (data.blank(), None)) for keep in [whole, *masks[:-1]]]
    return Cost.read(mask.metadata["cost"]), macs


@pytest.mark.parametrize("method", ["force", "force-regrow"])
def test_scoring_is_counted_at_the_mask_of_each_step(method):
    cost, macs = found(method=method)
    dense = macs[0]
    assert cost.examples == 3 * 2 * 32 and cost.seconds > 0 and cost.peak_memory > 10**7
    assert cost.forward_dense == cost.examples * dense.forward_dense
    assert cost.backward_dense == cost.examples * (dense.training_dense - dense.forward_dense)
    assert cost.forward_kept == 64 * sum(at.forward_kept for at in macs)
    back = sum(at.training_kept - at.forward_kept for at in macs)
    if method == "force-regrow":  # which asks for the gradients of all weights
        back += sum(dense.forward_dense - at.forward_kept for at in macs)
    assert cost.backward_kept == 64 * back < cost.backward_dense


def test_what_looks_at_no_gradient_costs_no_multiply_adds():
    model, data = fresh()
    mask = find_mask(model, data, SETUP, resolve(Pruning(method="magnitude"), "quick"), progress=False)
    cost = Cost.read(mask.metadata["cost"])
    assert cost == Cost(seconds=cost.seconds, peak_memory=cost.peak_memory) and cost.seconds > 0


@pytest.mark.parametrize(("mask", "kept"), [(None, DENSE), (HalfMask, HALF)])
def test_a_training_is_counted_step_by_step_and_its_evaluations_apart(mask, kept):
    cost = run(mlp(), blobs(), mask=mask and mask()).cost
    inputs = 16 * 3  # backward to the inputs of the second layer
    training, evaluation = cost.training, cost.evaluation
    assert [getattr(training, name) for name in COUNTS] == [
        EXAMPLES, EXAMPLES * DENSE, EXAMPLES * kept, EXAMPLES * (DENSE + inputs), EXAMPLES * (kept + inputs)
    ]  # fmt: skip
    assert [getattr(evaluation, name) for name in COUNTS] == [SCORED, SCORED * DENSE, SCORED * kept, 0, 0]
    assert cost.finding is None and min(training.seconds, evaluation.seconds) > 0
    assert min(training.peak_memory, evaluation.peak_memory) > 10**7


def counts(ledger):
    return [[getattr(part, name) for name in COUNTS] for part in (ledger.training, ledger.evaluation)]


@pytest.mark.parametrize("stop_at", [(0, 1), (1, 4), (2, 0)])
def test_a_resumed_training_has_the_ledger_of_one_that_was_not_stopped(tmp_path, stop_at):
    whole, place = run(mlp(), blobs(), mask=HalfMask()), folder(tmp_path)
    data = blobs(before={stop_at: lambda: signal.raise_signal(signal.SIGINT)})
    with pytest.raises(Interrupted):
        run(mlp(), data, folder=place, mask=HalfMask())
    before = Ledger.read(checkpoint.load(place.path)["cost"])
    assert 0 < before.training.examples < EXAMPLES
    after = run(mlp(), data, folder=place, mask=HalfMask())
    assert counts(after.cost) == counts(whole.cost)
    assert after.cost.training.seconds > before.training.seconds


def test_a_training_that_an_earlier_version_began_stays_without_a_ledger(tmp_path):
    place = folder(tmp_path)
    data = blobs(before={(1, 1): lambda: signal.raise_signal(signal.SIGINT)})
    with pytest.raises(Interrupted):
        run(mlp(), data, folder=place)
    state = checkpoint.load(place.path)
    del state["cost"], state["format"]
    checkpoint.save(place.path, state)
    assert run(mlp(), data, folder=place).cost == Ledger()
    assert "macs_kept" not in place.metrics()[-1]


@pytest.mark.parametrize("update", MOVING)
def test_a_mask_that_moves_is_counted_as_it_is_at_each_step(tmp_path, update, monkeypatch):
    seen, move = [start()], skeletal.MaskUpdate.step

    def step(self, *, share=1.0):
        seen.append(None)
        moved = move(self, share=share)
        seen[-1] = self.mask
        return moved

    monkeypatch.setattr(skeletal.MaskUpdate, "step", step)
    place = folder(tmp_path)
    start().save(place.path / "mask.safetensors")
    training = replace(GENTLE, **MOVING[update])
    cost = run(convnet(), blobs(IMAGES), training, mask=start(), folder=place).cost.training
    macs = [count_macs(convnet().eval(), mask, (blobs(IMAGES).blank(), None)) for mask in seen[:-1]]
    sizes = [16, 16, 16, 16, 6] * 2
    assert cost.forward_kept == sum(n * at.forward_kept for n, at in zip(sizes, macs, strict=True))
    back = sum(n * (at.training_kept - at.forward_kept) for n, at in zip(sizes, macs, strict=True))
    if update == "rigl":  # dense gradients of the weights in the steps before an update: 3, 6 and 9 of 10
        back += sum(sizes[i] * (macs[i].forward_dense - macs[i].forward_kept) for i in (2, 5, 8))
    assert cost.backward_kept == back
    assert cost.macs_dense == 140 * macs[0].training_dense


def test_a_run_leaves_its_ledger_and_a_mask_its_own_share_of_it(tmp_path):
    training = resolve(Training(epochs=2, batch_size=512, engine="dense", test_every=1), "quick")
    pruning = resolve(Pruning(method="snip", density=0.05, batches_per_step=1, prune_batch_size=16), "quick")
    place, result = experiment.run(SETUP, pruning, training, root=tmp_path, progress=False)
    assert result == json.loads((place.path / "result.json").read_text())
    ledger, mask = Ledger.read(result["cost"]), Mask.load(place.path / "mask.safetensors")
    assert ledger.finding == Cost.read(mask.metadata["cost"]) and ledger.finding.examples == 16
    rows = place.metrics()
    assert rows[-1]["macs_kept"] == ledger.training.macs_kept == 2 * rows[0]["macs_kept"]
    assert rows[-1]["macs_dense"] == ledger.training.macs_dense > ledger.training.macs_kept
    assert skeletal.load_run(place.path).result["cost"] == result["cost"]
    whole = ledger.finding.seconds + ledger.training.seconds + ledger.evaluation.seconds
    assert whole < result["wall_seconds"]
