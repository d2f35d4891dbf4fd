import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from skeletal.harness.training.evaluate import Scores, class_ranks, evaluate


class Replay(nn.Module):
    """A network whose output is its input."""

    def forward(self, x):
        return x


def slowly(outputs, targets):
    """One example at a time: the mean loss, and how often the class is among the first 1 and 5."""
    losses, top1, top5 = [], 0, 0
    for row, target in zip(outputs.tolist(), targets.tolist(), strict=True):
        losses.append(math.log(sum(math.exp(x - max(row)) for x in row)) + max(row) - row[target])
        order = sorted(range(len(row)), key=lambda c: -row[c])  # a stable sort: of equal outputs the first
        top1 += target in order[:1]
        top5 += target in order[:5]
    n = len(losses)
    return sum(losses) / n, 100 * top1 / n, 100 * top5 / n


@settings(deadline=None, max_examples=50)
@given(
    examples=st.integers(1, 20), classes=st.integers(1, 8), batch=st.integers(1, 7),
    levels=st.sampled_from([2, 1000]), seed=st.integers(0, 999),
)  # fmt: skip
def test_equals_a_slow_count(examples, classes, batch, levels, seed):
    g = torch.Generator().manual_seed(seed)
    outputs = torch.randint(levels, (examples, classes), generator=g) * (4.0 / levels)  # two levels make ties
    targets = torch.randint(classes, (examples,), generator=g)
    batches = zip(outputs.split(batch), targets.split(batch), strict=True)
    scores = evaluate(Replay(), batches, device="cpu")
    loss, top1, top5 = slowly(outputs, targets)
    assert scores == Scores(pytest.approx(loss, abs=1e-5), pytest.approx(top1), pytest.approx(top5), examples)


def test_a_collapsed_network_scores_as_chance():
    scores = evaluate(Replay(), [(torch.zeros(10, 10), torch.arange(10))], device="cpu")
    assert (scores.top1, scores.top5) == (10, 50)


def test_nan_outputs_are_wrong_and_the_loss_says_so():
    outputs = torch.tensor([[1.0, 0.0], [math.nan, 1.0], [math.nan, math.nan]])
    scores = evaluate(Replay(), [(outputs, torch.tensor([0, 1, 0]))], device="cpu")
    assert math.isnan(scores.loss)
    assert scores.top1 == scores.top5 == pytest.approx(100 / 3)


def test_ranks_count_from_zero():
    assert class_ranks(torch.tensor([[3.0, 1.0, 2.0]] * 3), torch.arange(3)).tolist() == [0, 2, 1]


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.9)).train()
    model[1].eval()  # as when a part is frozen
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batches = [(torch.randn(3, 4), torch.tensor([0, 1, 2]))]
    first = evaluate(model, batches, device="cpu")
    assert [m.training for m in model.modules()] == [True, True, False, True]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert first == evaluate(model, batches, device="cpu")  # no dropout


def test_modes_return_after_an_error():
    model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(RuntimeError):
        evaluate(model, [(torch.randn(3, 5), torch.zeros(3, dtype=torch.long))], device="cpu")
    assert model.training and model[0].training


def test_nothing_to_evaluate_of_a_split():
    said = r"none of the validation images can be decoded: mend them, or train without: --validation 0"
    with pytest.raises(ValueError, match=said):
        evaluate(Replay(), [(torch.empty(0, 2), torch.empty(0, dtype=torch.int64))], device="cpu", split="validation")


def test_nothing_to_evaluate():
    with pytest.raises(ValueError, match="nothing to evaluate"):
        evaluate(Replay(), [], device="cpu")


@pytest.mark.parametrize("channels_last", [False, True])
def test_bf16_and_channels_last_agree_with_float32(channels_last):
    torch.manual_seed(0)
    seen = []

    class Spy(nn.Conv2d):
        def forward(self, x):
            seen.append(x.is_contiguous(memory_format=torch.channels_last))
            out = super().forward(x)
            seen.append(out.dtype)
            return out

    model = nn.Sequential(Spy(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    batches = [(torch.randn(16, 3, 6, 6), torch.randint(8, (16,)))]
    exact = evaluate(model, batches, device="cpu")
    seen.clear()
    rough = evaluate(model, batches, device="cpu", bf16=True, channels_last=channels_last)
    assert seen == [channels_last, torch.bfloat16]
    assert rough.loss == pytest.approx(exact.loss, rel=0.02)
