"""Batches in pieces: the same gradient where there is no batch norm, in less memory."""

import weakref
from itertools import count

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import skeletal
from skeletal.core.model.batches import Cycle, cross_entropy, examples, pieces
from tests.cases import convnet, images, mlp

METHODS = {
    "snip": {"method": "snip", "batches_per_step": 3},
    "force": {"method": "force", "steps": 3, "batches_per_step": 2},
    "grasp-it": {"method": "grasp-it", "steps": 2},
    "grasp": {"method": "grasp", "batches_per_step": 3},
    "absolute": {"method": "snip", "average": "absolute", "batches_per_step": 2},
    "sparse": {"method": "force", "steps": 5, "engine": "sparse"},
}


def doubles():
    return [(x.double(), y) for x, y in images(4)]


def found(model, micro_batch, batches=None, density=0.05, **settings):
    steps = []
    mask = skeletal.prune(
        model, batches or doubles(), density=density, micro_batch=micro_batch, on_step=steps.append, **settings
    )
    return mask, steps


@pytest.mark.parametrize("name", METHODS)
def test_pieces_have_the_scores_of_the_whole(name):
    mask, steps = found(mlp().double(), None, **METHODS[name])
    for size in (5, 1, 12):  # 12 examples: pieces of 4, of 1, and whole
        cut, in_pieces = found(mlp().double(), size, **METHODS[name])
        assert cut == mask and cut.metadata["micro_batch"] == size
        for step, other in zip(steps, in_pieces, strict=True):
            assert other.loss == pytest.approx(step.loss)
            for layer, score in step.scores.items():
                torch.testing.assert_close(other.scores[layer], score, rtol=1e-9, atol=1e-12)


def test_no_piece_is_larger_than_asked_and_dicts_are_cut_too():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp().double()

        def forward(self, x, labels, scale):
            seen.append(len(x))
            return {"loss": nn.functional.cross_entropy(scale * self.net(x), labels)}

    seen = []
    batches = [{"x": x, "labels": y, "scale": torch.tensor(2.0)} for x, y in doubles()]
    whole, _ = found(Net(), None, batches, method="snip")
    seen.clear()
    assert found(Net(), 5, batches, method="snip")[0] == whole
    assert max(seen[:3]) == 4 and sum(seen[:3]) == 12


def test_batch_norm_sees_pieces():
    for bn_mode, same in (("train", False), ("eval", True)):  # in "eval" its statistics are not of the batch
        losses = [
            found(convnet().double(), size, density=0.5, method="snip", bn_mode=bn_mode)[1][0].loss
            for size in (None, 6)
        ]
        assert (losses[0] == pytest.approx(losses[1])) is same


class Endless:
    """Batches made anew each time; knows how many of them are alive at most."""

    def __init__(self):
        self.references, self.most, self.made = [], 0, 0

    def starting_at(self, first):
        for k in count(first):
            generator = torch.Generator().manual_seed(k)
            x = torch.randn(6, 3, 8, 8, generator=generator)
            self.references.append(weakref.ref(x))
            self.made += 1
            self.most = max(self.most, sum(reference() is not None for reference in self.references))
            yield x, torch.arange(6)

    def __iter__(self):
        return self.starting_at(0)


@pytest.mark.parametrize("method", ["grasp", "snip"])
def test_batches_that_can_be_made_again_are_not_held(method):
    endless = Endless()
    mask = skeletal.prune(mlp(), endless, density=0.1, method=method, batches_per_step=15, micro_batch=2)
    assert endless.made >= (30 if method == "grasp" else 15)
    assert endless.most <= 4  # the first, for its shape; the last of each pass; one being made
    held = [batch for batch, _ in zip(Endless(), range(15), strict=False)]
    assert mask == skeletal.prune(mlp(), held, density=0.1, method=method, batches_per_step=15, micro_batch=2)


def test_the_second_pass_has_the_batches_of_the_first():
    class Numbers:
        def starting_at(self, first):
            return count(first)

        def __iter__(self):
            return count()

    for batches in (Numbers(), list(range(20))):
        cycle = Cycle(batches)
        assert [next(cycle), cycle.peek()] == [0, 1]
        once, again = cycle.twice(3)
        assert list(once) == list(again) == [1, 2, 3]
        assert next(cycle) == 4


def test_what_cannot_be_cut_is_refused():
    packed = pack_sequence([torch.ones(3), torch.ones(2)])
    with pytest.raises(ValueError, match="PackedSequence cannot be cut into micro-batches"):
        list(pieces((packed, torch.arange(2)), 1))
    assert [share for _, share in pieces((packed, torch.arange(2)), 2)] == [1.0]
    with pytest.raises(ValueError, match="micro_batch is 0; it has to be at least 1"):
        found(mlp().double(), 0)


def test_examples_are_counted_by_the_targets():
    assert examples((torch.ones(3, 7), torch.ones(7))) == 7
    assert examples({"ids": torch.ones(4, 9), "labels": torch.ones(4), "scale": torch.tensor(1.0)}) == 4
    assert examples((["a", "b"], None)) == 1


def test_a_label_that_is_no_class_is_named():
    logits = torch.zeros(3, 4)
    assert cross_entropy(logits, torch.tensor([0, 1, 3])).item() == pytest.approx(1.3863, abs=1e-4)
    with pytest.raises(ValueError, match=r"label 4 is not in 0\.\.3: the network has 4 outputs"):
        cross_entropy(logits, torch.tensor([0, 4, 3]))
    batches = [(x, y + 5) for x, y in images()]
    with pytest.raises(ValueError, match=r"label 1\d is not in 0\.\.9"):
        skeletal.prune(mlp(), batches, density=0.1, method="snip")


def boxes(*counts):
    """A batch for detection: a list of images, and a list with each one's boxes."""
    generator = torch.Generator().manual_seed(0)
    return {
        "images": [torch.rand(3, 6, 6, generator=generator).double() for _ in counts],
        "targets": [{"boxes": torch.rand(n, 4, generator=generator).double()} for n in counts],
    }


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 4)

    def forward(self, images, targets):
        losses = [
            (target["boxes"] - self.head(self.conv(image).tanh().mean((1, 2)))).square().mean()
            for image, target in zip(images, targets, strict=True)
        ]
        return {"loss": torch.stack(losses).mean()}


@pytest.mark.parametrize("counts", [(1, 2, 5, 2), (5, 5, 5, 5), (1, 2, 5, 2, 3)])
def test_a_list_is_cut_between_its_examples(counts):
    assert examples(boxes(*counts)) == len(counts)
    whole, in_pieces = (
        found(Detector().double(), size, [boxes(*counts)], density=0.5, method="snip")[1][0] for size in (None, 2)
    )
    assert in_pieces.loss == pytest.approx(whole.loss)
    for layer, score in whole.scores.items():
        torch.testing.assert_close(in_pieces.scores[layer], score, rtol=1e-9, atol=1e-12)


def test_several_inputs_and_targets_are_each_cut():
    batch = [[torch.arange(4.0), torch.ones(4, 4)], [torch.arange(4), torch.arange(4)]]
    assert examples(batch) == 4
    first, last = (piece for piece, _ in pieces(batch, 2))
    assert [[x.tolist() for x in part] for part in last][1] == [[2, 3], [2, 3]]
    assert [tuple(x.shape) for x in first[0]] == [(2,), (2, 4)]
    named = {"x": torch.arange(3), "names": ["a", "b", "c"], "size": (8, 8)}
    assert [piece["names"] for piece, _ in pieces(named, 2)] == [["a"], ["b", "c"]]
    assert [piece["size"] for piece, _ in pieces(named, 2)] == [(8, 8), (8, 8)]


def test_parts_that_disagree_are_counted_by_most_and_not_cut():
    batch = {"x": torch.ones(10, 6), "labels": torch.ones(10), "class_weight": torch.ones(3)}
    assert examples(batch) == 10
    assert [share for _, share in pieces(batch, 10)] == [1.0]
    for wrong in (
        batch,
        (torch.ones(3, 10), torch.ones(10)),
        (torch.ones(10), {"y": torch.ones(10), "w": torch.ones(3)}),
    ):
        with pytest.raises(ValueError, match=r"10 examples with a part of length 3 cannot be cut.*along dimension 0"):
            list(pieces(wrong, 5))
    with pytest.raises(ValueError, match="3 examples with a list as long as its tensors cannot be cut"):
        list(pieces(boxes(1, 2, 3), 2))
