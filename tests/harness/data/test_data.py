"""The contract of a split: order and augmentation are functions of (seed, epoch, batch), and of nothing else."""

import gc
import random
import subprocess
import sys
import weakref
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import pad

from skeletal.harness import data
from skeletal.harness.data import memory, parquet
from skeletal.harness.data.augment import crop_and_flip, draw, normalize
from skeletal.harness.data.draws import divide, generator
from skeletal.harness.data.memory import Arrays, MemorySplit, Part, assemble
from skeletal.harness.data.specs import SPECS

CIFAR10 = Path(__file__).parents[3] / ".." / "shared" / "data" / "cifar10"
SPEC = SPECS["cifar10"]


def noise(examples, spec=SPEC):
    """Random images, each labelled with its number."""
    shape = (examples, spec.channels, spec.image_size, spec.image_size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator("images"))
    return Part(images, torch.arange(examples))


SPLIT = MemorySplit(noise(41), torch.arange(41), SPEC)


def same(ours, theirs):
    ours, theirs = list(ours), list(theirs)
    return len(ours) == len(theirs) and all(
        torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(ours, theirs, strict=True)
    )


@given(st.data(), st.integers(0, 2**40), st.integers(0, 500), st.integers(1, 50), st.booleans(), st.booleans())
@settings(max_examples=40, deadline=None)
def test_a_pass_is_repeatable_and_can_be_resumed_at_any_batch(choose, seed, epoch, batch_size, train, drop_last):
    settings = dict(train=train, seed=seed, epoch=epoch, drop_last=drop_last)
    whole = SPLIT.batches(batch_size, **settings)
    first = list(whole)
    assert len(first) == len(whole) == (41 // batch_size if drop_last else -(-41 // batch_size))
    assert same(first, whole)
    start = choose.draw(st.integers(0, len(first)))
    rest = SPLIT.batches(batch_size, start=start, **settings)
    assert len(rest) == len(first) - start
    assert same(first[start:], rest)


@given(st.integers(0, 99), st.integers(0, 99), st.integers(1, 50))
@settings(max_examples=20, deadline=None)
def test_a_pass_visits_every_example_once(seed, epoch, batch_size):
    labels = torch.cat([y for _, y in SPLIT.batches(batch_size, train=True, seed=seed, epoch=epoch)])
    assert sorted(labels.tolist()) == list(range(41))


def test_seed_epoch_and_batch_each_change_the_draws():
    def images(**key):
        return next(iter(SPLIT.batches(41, train=True, **key)))[0]

    assert not torch.equal(images(seed=0), images(seed=1))
    assert not torch.equal(images(epoch=0), images(epoch=1))
    same_image = MemorySplit(SPLIT.part, torch.zeros(8, dtype=torch.long), SPEC)
    first, second = (x for x, _ in same_image.batches(4, train=True))
    assert not torch.equal(first, second)


def test_evaluation_is_in_order_and_plain():
    (images, labels), *_ = SPLIT.batches(10, train=False, seed=3, epoch=4)
    mean, std = torch.tensor(SPEC.mean).view(3, 1, 1), torch.tensor(SPEC.std).view(3, 1, 1)
    assert torch.equal(labels, torch.arange(10))
    assert images.dtype == torch.float32 and labels.dtype == torch.int64
    torch.testing.assert_close(images, (SPLIT.part.images[:10] / 255 - mean) / std, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["digits", "fashion-mnist", "cifar10", "tiny-imagenet"])
def test_augmentation_equals_one_image_after_the_other(name):
    spec = SPECS[name]
    split = MemorySplit(noise(30, spec), torch.arange(30), spec)
    for k, (images, labels) in enumerate(split.batches(16, train=True, seed=5, epoch=2)):
        draws = draw(len(labels), padding=spec.padding, flip=spec.flip, generator=generator("augment", 5, 2, k))
        for image, label, top, left, mirror in zip(images, labels, *draws, strict=True):
            raw = pad(split.part.images[label], (spec.padding,) * 4)
            crop = raw[:, top : top + spec.image_size, left : left + spec.image_size]
            crop = crop.flip(2) if mirror else crop
            for channel, mean, std, expected in zip(image, spec.mean, spec.std, crop, strict=True):
                torch.testing.assert_close(channel, (expected / 255 - mean) / std, atol=1e-5, rtol=0)


def test_draws_cover_every_crop_and_mirror_half():
    draws = draw(20_000, padding=4, flip=True, generator=generator("test"))
    assert len(set(zip(draws.top.tolist(), draws.left.tolist(), strict=True))) == 81
    assert 0.48 < draws.mirror.float().mean() < 0.52
    assert not draw(100, padding=1, flip=False, generator=generator("test")).mirror.any()


def test_the_border_is_black_in_the_raw_image():
    draws = draw(64, padding=4, flip=True, generator=generator("test"))
    images = crop_and_flip(torch.full((64, 3, 32, 32), 255, dtype=torch.uint8), draws, 4)
    assert set(images.unique().tolist()) == {0, 255}
    black = normalize(images, torch.tensor(SPEC.mean), torch.tensor(SPEC.std)).amin((0, 2, 3))
    torch.testing.assert_close(black, -torch.tensor(SPEC.mean) / torch.tensor(SPEC.std))


@given(st.integers(1, 300), st.floats(0, 0.99), st.integers(0, 9))
@settings(max_examples=50, deadline=None)
def test_validation_is_disjoint_and_of_the_asked_size(examples, fraction, seed):
    kept, held_out = divide(examples, fraction, seed)
    assert len(held_out) == round(fraction * examples)
    assert sorted(kept.tolist() + held_out.tolist()) == list(range(examples))
    assert torch.equal(held_out, divide(examples, fraction, seed)[1])


def test_the_test_set_is_apart_and_validation_may_be_empty():
    train, test = noise(50), noise(20)
    labels = Part(train.images, train.labels % 10), Part(test.images, test.labels % 10)
    whole = assemble(Arrays(*labels, tuple("0123456789")), SPEC, validation=0.0, seed=0)
    assert (len(whole.train), len(whole.validation), len(whole.test)) == (50, 0, 20)
    assert list(whole.validation.batches(8, train=False)) == []
    assert len(whole.validation.labels) == 0
    assert whole.test.part is labels[1]
    with pytest.raises(ValueError, match="fraction of the training set"):
        divide(10, 1.0, 0)


def test_arguments_out_of_range_are_refused():
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        SPLIT.batches(0, train=True)
    with pytest.raises(ValueError, match="start=6 is outside the pass of 5 batches"):
        SPLIT.batches(10, train=True, start=6)


def test_a_stream_runs_through_the_epochs():
    stream = data.Stream(SPLIT, 10, seed=7)
    expected = [b for e in range(3) for b in SPLIT.batches(10, train=True, seed=7, epoch=e, drop_last=True)]
    assert same(islice(stream, 12), expected)
    assert same(islice(stream, 12), expected)
    assert [len(y) for _, y in islice(data.Stream(SPLIT, 64, seed=0), 3)] == [41, 41, 41]
    with pytest.raises(ValueError, match="empty split"):
        data.Stream(MemorySplit(SPLIT.part, torch.arange(0), SPEC), 4, seed=0)


def test_global_generators_are_untouched():
    data.load("digits")  # scikit-learn imports rich, and that draws a number once
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    digits = data.load("digits", seed=3)
    list(digits.train.batches(256, train=True))
    next(iter(data.Stream(digits.train, 8, seed=0)))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert np.array_equal(before[2], np.random.get_state()[1])


def test_digits_are_real_and_their_test_set_is_fixed():
    digits, other = data.load("digits"), data.load("digits", seed=1)
    assert (len(digits.train), len(digits.validation), len(digits.test)) == (1293, 144, 360)
    assert (digits.num_classes, digits.channels, digits.image_size) == (10, 1, 8)
    assert same(digits.test.batches(100, train=False), other.test.batches(100, train=False))
    assert not torch.equal(digits.validation.labels, other.validation.labels)
    assert digits.test.labels.bincount().min() >= 35
    pixels = digits.train.part.images.float() / 255
    assert pixels.max() == 1
    spec = SPECS["digits"]
    assert pixels.mean().item() == pytest.approx(spec.mean[0], abs=1e-4)
    assert pixels.std().item() == pytest.approx(spec.std[0], abs=1e-4)


@pytest.mark.skipif(not (CIFAR10 / "test.parquet").is_file(), reason="needs ../shared/data/cifar10")
def test_the_real_cifar10_parquet():
    assert data.found(CIFAR10)["cifar10"] == CIFAR10
    assert data.found(CIFAR10)["cifar100"] is None
    test = parquet.read_part([CIFAR10 / "test.parquet"], SPEC)
    assert test.images.shape == (10_000, 3, 32, 32)
    assert test.labels.bincount().tolist() == [1000] * 10
    pixels = normalize(test.images, torch.tensor(SPEC.mean), torch.tensor(SPEC.std))
    assert pixels.mean((0, 2, 3)).abs().max() < 0.05 and (pixels.std((0, 2, 3)) - 1).abs().max() < 0.05


def test_importing_the_package_imports_no_reader():
    code = "import sys, skeletal.harness.data; print({'torchvision', 'pyarrow', 'PIL', 'sklearn'} & {*sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


def test_balanced_batches_hold_every_class_equally_often():
    split = data.load("digits").train
    batches = list(islice(data.BalancedStream(split, 45, 0, 10), 4))
    for images, labels in batches:
        assert labels.bincount().tolist() == [4] * 10
        assert images.shape == (40, 1, 8, 8)
    again = next(iter(data.BalancedStream(split, 45, 0, 10)))
    assert torch.equal(again[0], batches[0][0])
    assert not torch.equal(batches[0][0], batches[1][0])
    # The first batch is made of the first examples of each class that the plain stream gives.
    plain = list(islice(data.Stream(split, 45, 0), 10))
    images, labels = torch.cat([x for x, _ in plain]), torch.cat([y for _, y in plain])
    for c in range(10):
        assert torch.equal(batches[0][0][4 * c : 4 * c + 4], images[labels == c][:4])


def test_batches_that_cannot_be_balanced():
    split = data.load("digits").train
    with pytest.raises(ValueError, match="an example of each of 10 classes, not 9"):
        data.BalancedStream(split, 9, 0, 10)
    with pytest.raises(ValueError, match="no examples of class 10"):
        data.BalancedStream(split, 20, 0, 11)


# --- read once, and kept where the network is ---


def test_batches_are_made_where_the_images_are():
    there = data.resident(SPLIT, torch.device("meta"))  # a device that computes shapes, and refuses any mixture
    for train in (True, False):
        batches = list(there.batches(10, train=train, seed=1))
        assert [tuple(x.shape) for x, _ in batches] == [(10, 3, 32, 32)] * 4 + [(1, 3, 32, 32)]
        assert {t.device.type for batch in batches for t in batch} == {"meta"}
    moved = next(iter(there.batches(10, train=False)))
    assert moved[0].dtype == torch.float32 and moved[1].dtype == torch.int64
    assert same(data.resident(SPLIT, torch.device("cpu")).batches(10, train=True), SPLIT.batches(10, train=True))


def test_a_set_moves_to_a_device_once():
    part = noise(5)
    there = torch.device("meta")
    first, second = memory._on(there, part), memory._on(there, part)
    assert first.images is second.images and first.labels.device == there
    gone = weakref.ref(first.images)
    del part, first, second
    gc.collect()
    assert gone() is None  # and goes with the one on the CPU


def test_two_labellings_of_the_same_images_stay_two_on_a_device():
    part = noise(5)
    other = Part(part.images, part.labels + 1)
    there = torch.device("cpu", 0)  # another device than the CPU, for what keeps a copy on each
    assert torch.equal(memory._on(there, part).labels, part.labels)
    assert torch.equal(memory._on(there, other).labels, other.labels)
    assert memory._on(there, part).images is memory._on(there, other).images


class OneClassCannotBeRead:
    labels = torch.tensor([0, 1] * 8)

    def __len__(self):
        return 16

    def batches(self, size, **_):
        yield from [(torch.zeros(size, 1, 2, 2), torch.zeros(size, dtype=torch.long))] * (16 // size)


def test_balanced_batches_do_not_wait_for_ever_for_a_class():
    with pytest.raises(ValueError, match="no image of class 1 came in 10 epochs to balance batches: can"):
        next(iter(data.BalancedStream(OneClassCannotBeRead(), 4, 0, 2)))
