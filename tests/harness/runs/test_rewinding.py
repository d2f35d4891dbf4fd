"""Iterative magnitude pruning: rewound to the bit, against a loop by hand, whatever stops it in between."""

import copy
import signal
from dataclasses import replace

import pytest
import torch
from torch import nn

import skeletal
from skeletal.core.diagnosis.macs import count_macs
from skeletal.core.masks.mask import Mask
from skeletal.harness.config import Pruning, Setup, Training, resolve, rounds_to
from skeletal.harness.console.interrupt import Interrupted
from skeletal.harness.ledger import Cost
from skeletal.harness.runs import experiment
from skeletal.harness.runs.rewinding import last_round, pruned, rewind_epoch
from skeletal.harness.store import statefile
from skeletal.harness.training.task import Task
from skeletal.harness.training.train import train
from tests.cases import convnet
from tests.harness.training.blobs import TRAINING, blobs, folder, mlp, same

IMAGES = (3, 6, 6)
GENTLE = replace(TRAINING, lr=0.01, epochs=3, milestones=(2 / 3,))
IMP = Pruning(method="imp", density=0.6, steps=2, rewind_epochs=1)  # 1,528 weights, 1,184, 917


def rounds(place, data, training=GENTLE, pruning=IMP, model=convnet):
    task = Task(model=model(), data=data, training=training, device=torch.device("cpu"), folder=place)
    task = last_round(task, pruning, progress=False)
    train(task.model, data, training, mask=task.mask, folder=place, device="cpu", progress=False)
    return task.mask, task.model


def epochs(model, optimizer, data, first, last, mask):
    """Plain training from one epoch to another, pruned weights set to 0 after every step."""
    for epoch in range(first, last):
        optimizer.param_groups[0]["lr"] = 0.01 if epoch < 2 else 0.01 * 0.1
        for x, y in data.train.batches(16, train=True, seed=0, epoch=epoch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            for name, keep in mask.items():
                model.get_parameter(name).grad.mul_(keep)
            optimizer.step()
            with torch.no_grad():
                for name, keep in mask.items():
                    model.get_parameter(name).masked_fill_(~keep, 0)


def by_hand(data, k):
    """The paper's Algorithm 2 in two rounds and a last training, with momentum rewound as the weights are."""
    mask = {
        name: torch.ones_like(keep) for name, keep in skeletal.prune(convnet(), density=1.0, method="random").items()
    }
    model = convnet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    epochs(model, optimizer, data, 0, k, mask)
    start = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    epochs(model, optimizer, data, k, 3, mask)
    for count in (1184, 917):
        kept = [(name, i) for name, keep in mask.items() for i in keep.flatten().nonzero().flatten().tolist()]
        flat = sorted(kept, key=lambda at: -abs(float(model.get_parameter(at[0]).detach().flatten()[at[1]])))
        for name in mask:
            mask[name] = torch.zeros_like(mask[name])
        for name, i in flat[:count]:
            mask[name].view(-1)[i] = True
        model.load_state_dict(start[0])
        optimizer.load_state_dict(copy.deepcopy(start[1]))
        with torch.no_grad():
            for name, keep in mask.items():
                weight = model.get_parameter(name)
                weight.masked_fill_(~keep, 0)
                for value in optimizer.state.get(weight, {}).values():
                    value.masked_fill_(~keep, 0)
        epochs(model, optimizer, data, k, 3, mask)
    return mask, model


@pytest.mark.parametrize("k", [0, 1])
def test_it_is_the_papers_algorithm_to_the_bit(tmp_path, k):
    mask, model = rounds(folder(tmp_path), blobs(IMAGES), pruning=replace(IMP, rewind_epochs=k))
    expected, theirs = by_hand(blobs(IMAGES), k)
    assert mask == expected and mask.kept == 917 == round(0.6 * mask.total)
    assert same(dict(model.state_dict()), dict(theirs.state_dict()))
    assert mask.metadata["method"] == "imp" and mask.metadata["rewind_epoch"] == k and mask.metadata["connected"]
    assert mask.metadata["prune_seconds"] > 0


@pytest.mark.parametrize("k", [0, 1])
def test_it_costs_what_its_rounds_trained(tmp_path, k):
    place = folder(tmp_path)
    mask, model = rounds(place, blobs(IMAGES), pruning=replace(IMP, rewind_epochs=k))
    (first,) = (skeletal.Mask.load(file) for file in place.path.glob("rounds/*/mask.safetensors"))
    dense, kept = (count_macs(model.eval(), keep, (blobs(IMAGES).blank(), None)) for keep in (first, mask))
    before, after = 70 * 3, 70 * (3 - k)  # examples, without those of the epochs that a round rewinds to
    cost = Cost.read(mask.metadata["cost"])
    assert cost.examples == before + after
    assert cost.macs_dense == cost.examples * dense.training_dense
    assert cost.macs_kept == before * dense.training_dense + after * dense.training_kept < cost.macs_dense
    rows = place.metrics()
    assert [row.get("macs_kept") for row in rows] == [None] * k + [
        70 * epoch * kept.training_kept for epoch in range(1, 4 - k)
    ]


def test_a_round_that_prunes_nothing_is_the_dense_training_to_the_bit(tmp_path):
    """Everything is rewound: weights, momentum, statistics, learning rate, order, dropout's random numbers."""
    whole, again, model = folder(tmp_path, "whole"), folder(tmp_path, "again"), mlp()
    training = replace(TRAINING, epochs=4)
    expected = train(model, blobs(), training, folder=whole, device="cpu", progress=False, keep_epoch=2)
    state, other = statefile.load(whole.path / statefile.KEPT), mlp()
    assert state["epoch"] == 2 and statefile.load(whole.path)["epoch"] == 4
    mask = skeletal.prune(mlp(), density=1.0, method="random")
    for row in whole.metrics()[:2]:
        again.append(row)
    rewound = pruned(state, mask, [name for name, _ in other.named_parameters()])
    assert rewound["seconds"] == 0 < state["seconds"], "a round costs what it takes itself"
    statefile.save(again.path, rewound)
    torch.manual_seed(99)
    found = train(other, blobs(), training, mask=mask, folder=again, device="cpu", progress=False)
    assert same(dict(model.state_dict()), dict(other.state_dict()))
    assert (found.train, found.test) == (expected.train, expected.test)


@pytest.mark.parametrize(("number", "stop_at"), [(0, (2, 1)), (1, (0, 2)), (2, (2, 1))])
def test_stopped_in_any_round_it_goes_on_to_the_same_bits(tmp_path, number, stop_at):
    mask, model = rounds(folder(tmp_path, "whole"), blobs(IMAGES))
    data, place, seen = blobs(IMAGES), folder(tmp_path, "parts"), []
    if number and stop_at[0] == 0:
        stop_at = (1, 0)  # the first step after rewinding

    def stop():
        seen.append(1)
        if len(seen) == number + 1:
            signal.raise_signal(signal.SIGINT)
        else:
            data.train.before[stop_at] = stop  # which was taken out

    data.train.before[stop_at] = stop
    with pytest.raises(Interrupted):
        rounds(place, data)
    again = rounds(place, blobs(IMAGES))
    assert again[0] == mask and same(dict(again[1].state_dict()), dict(model.state_dict()))
    assert [row["epoch"] for row in place.metrics()] == [0, 1, 2]


def test_finished_rounds_are_not_trained_again(tmp_path):
    mask, _ = rounds(folder(tmp_path), blobs(IMAGES))
    (folder(tmp_path).path / "mask.safetensors").unlink()

    def never():
        raise AssertionError("trained again")

    task = Task(model=convnet(), data=blobs(IMAGES, before={(1, 0): never, (2, 0): never}), training=GENTLE,
                device=torch.device("cpu"), folder=folder(tmp_path))  # fmt: skip
    assert last_round(task, IMP, progress=False).mask == mask
    kept = next((folder(tmp_path).path / "rounds").glob("00-*")) / "rewind" / "checkpoint" / "state.pt"
    kept.unlink()
    (folder(tmp_path).path / "checkpoint" / "state.pt").unlink()
    with pytest.raises(FileNotFoundError, match="rewind is missing, and every round rewinds to it: delete"):
        last_round(task, IMP, progress=False)


def test_the_last_rounds_train_on_the_engine(tmp_path):
    dense = rounds(folder(tmp_path, "dense"), blobs(IMAGES))
    sparse = rounds(folder(tmp_path, "sparse"), blobs(IMAGES), replace(GENTLE, engine="sparse"))
    assert folder(tmp_path, "sparse").metrics()[-1]["engine"] == "sparse"
    assert sum(int((dense[0][name] ^ keep).sum()) for name, keep in sparse[0].items()) <= 4  # all but ties of rounding
    torch.testing.assert_close(sparse[1].state_dict(), dense[1].state_dict(), rtol=0.01, atol=0.01)
    sparse[0].check(sparse[1])


def normed():
    """Without biases, as the paper's networks: batch norm alone tells whether a channel without inputs is dead."""
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8),
        nn.ReLU(), nn.Flatten(), nn.Linear(32, 3),
    )  # fmt: skip


def test_a_last_round_on_the_engine_goes_on_to_the_same_bits(tmp_path):
    training, few = replace(GENTLE, engine="sparse"), replace(IMP, density=0.15, steps=1)
    mask, model = rounds(folder(tmp_path, "whole"), blobs(IMAGES), training, few, normed)
    assert min(int(keep.flatten(1).any(1).sum()) for keep in mask.values() if keep.dim() == 4) < 8, "a channel is empty"
    data, place, seen = blobs(IMAGES), folder(tmp_path, "parts"), []

    def stop():
        seen.append(1)
        if len(seen) == 2:
            signal.raise_signal(signal.SIGINT)
        else:
            data.train.before[2, 1] = stop

    data.train.before[2, 1] = stop
    with pytest.raises(Interrupted):
        rounds(place, data, training, few, normed)
    again = rounds(place, blobs(IMAGES), training, few, normed)
    assert again[0] == mask and same(dict(again[1].state_dict()), dict(model.state_dict()))


def test_rounds_and_epochs_are_the_papers():
    assert [rounds_to(density) for density in (1.0, 0.8, 0.64, 0.6, 0.1)] == [1, 1, 2, 3, 11]
    assert resolve(Pruning(method="imp", density=0.1), "cifar10").steps == 11
    paper = Pruning(method="imp")
    assert [rewind_epoch(paper, epochs) for epochs in (2, 30, 160)] == [1, 1, 5]  # of 160 epochs, 2,000 steps are 5
    with pytest.raises(ValueError, match="rewinding to epoch 3 leaves nothing of 3 epochs"):
        rewind_epoch(replace(paper, rewind_epochs=3), 3)


def test_a_run_from_end_to_end(tmp_path):
    pruning = resolve(Pruning(method="imp", density=0.7, steps=1), "quick")
    training = resolve(Training(epochs=2, batch_size=512, engine="dense"), "quick")
    place, result = experiment.run(Setup(device="cpu"), pruning, training, root=tmp_path, progress=False)
    assert "-imp-0.7-" in place.path.name and result["method"] == "imp"
    assert result["kept"] == round(0.7 * result["prunable"]) == Mask.load(place.path / "mask.safetensors").kept
    assert result["prune_seconds"] > 0
    with pytest.raises(ValueError, match="imp finds its mask by training; it does not go with --update rigl"):
        experiment.run(Setup(), pruning, replace(training, update="rigl"), root=tmp_path, progress=False)
