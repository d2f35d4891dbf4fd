"""bfloat16 scoring and the images' memory order: close to, and equal to, the plain path."""

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import skeletal
from skeletal.core.model.batches import Cycle
from skeletal.core.model.gradients import Derivatives
from skeletal.core.model.precision import in_float32, prefers_channels_last
from skeletal.core.model.tensors import flatten
from tests.cases import Everything, Residual, Tokens, convnet, images, mlp, tokens
from tests.unchanged import assert_same, everything_about


def weights_of(model):
    return {name: p.detach() for name, p in model.named_parameters() if p.dim() > 1}


def derivatives(model, batches, which="gradient", **options):
    torch.manual_seed(0)
    return getattr(Derivatives(model, Cycle(batches), len(batches), **options), which)(weights_of(model))


class Bottleneck(nn.Sequential):
    """Mostly 1x1 convolutions; flattens by `view`, which needs images in their own order."""

    def __init__(self, view=False, dropout=0.0):
        torch.manual_seed(0)
        super().__init__(
            nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
            nn.Conv2d(8, 6, 1), nn.Dropout(dropout), nn.MaxPool2d(4), nn.Linear(24, 10),
        )  # fmt: skip
        self.view = view

    def forward(self, x):
        *features, head = self
        for layer in features:
            x = layer(x)
        return head(x.view(len(x), -1) if self.view else x.flatten(1))


# bfloat16


@pytest.mark.parametrize("make", [convnet, mlp, Residual])
def test_the_default_is_float32_and_a_caller_who_autocasts_changes_nothing(make):
    torch.manual_seed(0)
    model = make()
    mask = skeletal.prune(model, images(), density=0.1, steps=3)
    assert mask.metadata["precision"] == "float32"
    with torch.autocast("cpu", torch.bfloat16):
        assert skeletal.prune(model, images(), density=0.1, steps=3, precision="float32") == mask


@pytest.mark.parametrize("which", ["gradient", "hessian_gradient"])
@pytest.mark.parametrize("make", [convnet, mlp])
def test_bfloat16_is_close_to_float32_and_given_in_float32(make, which):
    model = make()
    exact, loss = derivatives(model, images(), which)
    close, near = derivatives(model, images(), which, precision="bfloat16")
    assert near == pytest.approx(loss, rel=0.01) and near != loss
    assert all(one.dtype == torch.float32 for one in close.values())
    one, two = flatten(exact), flatten(close)
    assert torch.nn.functional.cosine_similarity(one, two, dim=0) > (0.999 if which == "gradient" else 0.98)
    assert not torch.equal(one, two)


@pytest.mark.filterwarnings("ignore::skeletal.CollapseWarning")
@pytest.mark.parametrize("method", ["force", "snip", "grasp", "grasp-it", "magnitude"])
def test_a_mask_found_in_bfloat16_says_so_and_leaves_the_model(method):
    model = convnet()
    before = everything_about(model)
    steps = None if skeletal.METHODS[method].one_shot else 3
    mask = skeletal.prune(model, images(), density=0.1, method=method, steps=steps, precision="bfloat16")
    assert mask.kept == round(0.1 * mask.total)
    assert mask.metadata["precision"] == "bfloat16"
    assert_same(before, everything_about(model))


def test_layers_of_every_kind_in_bfloat16():
    torch.manual_seed(0)
    mask = skeletal.prune(Everything(), images(channels=4), density=0.3, steps=2, precision="bfloat16")
    assert mask.kept == round(0.3 * mask.total)


@dataclass(frozen=True)
class Answer:
    logits: torch.Tensor
    labels: tuple[str, ...]


def test_a_dataclass_reaches_the_loss_in_float32():
    class Answers(nn.Sequential):
        def forward(self, x):
            return Answer(super().forward(x), ("cat", "dog"))

    seen = []

    def loss(answer, targets):
        seen.append((answer.logits.dtype, answer.labels))
        return nn.functional.cross_entropy(answer.logits, targets)

    skeletal.prune(Answers(*mlp()), images(), density=0.5, method="snip", loss=loss, precision="bfloat16")
    assert seen == [(torch.float32, ("cat", "dog"))]


def test_dict_batches_in_bfloat16_with_the_models_loss_or_the_callers():
    torch.manual_seed(0)
    model, seen = Tokens(tie=False), []

    def loss(outputs, batch):
        seen.append(outputs["logits"].dtype)
        return nn.functional.cross_entropy(outputs["logits"].flatten(0, 1), batch["labels"].flatten())

    for own in (None, loss):
        mask = skeletal.prune(model, tokens(), density=0.5, steps=2, loss=own, precision="bfloat16")
        assert mask.kept == round(0.5 * mask.total)
    assert set(seen) == {torch.float32}


def test_outputs_are_widened_in_the_container_that_they_came_in():
    class Outputs(dict):
        def __setitem__(self, key, value):
            super().__setitem__(key, value)
            setattr(self, key, value)

    half = torch.ones(2, dtype=torch.bfloat16)
    found = Outputs()
    found["logits"], found["states"], found["ids"] = half, (half,), torch.ones(2, dtype=torch.long)
    found = in_float32(found)
    assert type(found) is Outputs
    assert found.logits.dtype == found["logits"].dtype == found["states"][0].dtype == torch.float32
    assert found["ids"].dtype == torch.long
    assert in_float32(half.double()).dtype == torch.float64


def test_an_unknown_precision_is_refused_with_the_nearest():
    batches = iter(images())
    with pytest.raises(ValueError, match=r"unknown precision 'bfloat'\. Did you mean 'bfloat16'\? There are float32"):
        skeletal.prune(mlp(), batches, density=0.1, precision="bfloat")
    assert len(list(batches)) == 3


# memory order


@pytest.mark.parametrize("which", ["gradient", "hessian_gradient"])
@pytest.mark.parametrize("make", [convnet, Residual, Bottleneck, Everything])
def test_channels_last_gives_the_same_derivatives(make, which):
    torch.manual_seed(0)
    model = make().double()
    batches = [(x.double(), y) for x, y in images(2, channels=4 if make is Everything else 3)]
    plain, loss = derivatives(model, batches, which)
    other, same = derivatives(model, batches, which, channels_last=True)
    assert same == pytest.approx(loss, rel=1e-12)
    for name, one in plain.items():
        torch.testing.assert_close(other[name], one, rtol=1e-9, atol=1e-13)
        assert other[name].is_contiguous() == one.is_contiguous()


def test_code_that_needs_images_in_their_own_order_gets_them():
    plain, view = Bottleneck(dropout=0.2), Bottleneck(view=True, dropout=0.2)
    batches = images(3)
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        view(batches[0][0].contiguous(memory_format=torch.channels_last))
    assert prefers_channels_last(view, "float32")
    mask = skeletal.prune(view, batches, density=0.2, steps=3)
    expected, _ = derivatives(plain, batches)
    found, _ = derivatives(view, batches, channels_last=True)
    assert mask.kept == round(0.2 * mask.total)
    for name, one in expected.items():  # dropout included: the first, futile try draws nothing that counts
        assert torch.equal(found[name], one)


def test_any_other_error_of_the_model_passes():
    class Broken(Bottleneck):
        def forward(self, x):
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        skeletal.prune(Broken(), images(), density=0.2)


def test_which_networks_get_channels_last():
    assert prefers_channels_last(Bottleneck(), "float32")
    assert not prefers_channels_last(convnet(), "float32")
    assert prefers_channels_last(convnet(), "bfloat16")
    assert not prefers_channels_last(mlp(), "bfloat16")
    assert not prefers_channels_last(copy.deepcopy(convnet()).double(), "bfloat16")


def test_the_callers_batches_and_weights_keep_their_order():
    model, batches = Bottleneck(), images()
    skeletal.prune(model, batches, density=0.2, steps=2)
    assert all(x.is_contiguous() for x, _ in batches)
    assert all(p.is_contiguous() for p in model.parameters())
