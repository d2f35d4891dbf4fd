"""Public codes' choices, against straightforward writings of what those codes compute."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, nll_loss

import skeletal
from skeletal.harness.config import AS_IN, Pruning, Setup, resolve
from skeletal.harness.runs import experiment, finding
from skeletal.harness.runs.public_codes import LOSSES, as_in
from tests.cases import convnet, images

LAYERS = (nn.Conv2d, nn.Linear)


def layers(net):
    return [layer for layer in net.modules() if isinstance(layer, LAYERS)]


def gradients(net, loss, batch):
    net.zero_grad()
    loss(net(batch[0]), batch[1]).backward()
    return [layer.weight.grad.clone() for layer in layers(net)]


def assert_scores(mask_scores, expected):
    for ours, theirs in zip(mask_scores.values(), expected, strict=True):
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize(
    ("method", "resurrects", "criterion"),
    [
        ("force", False, lambda dense, now, g: (now * g).abs()),  # their method 1, Iterative SNIP
        ("grasp-it", False, lambda dense, now, g: g.square()),  # 2
        ("force-regrow", True, lambda dense, now, g: (dense * g).abs()),  # 3, FORCE
    ],
    ids=["force", "grasp-it", "force-regrow"],
)
def test_force_code_scores_as_the_papers_official_code(method, resurrects, criterion):
    model, batches, seen = convnet(), images(5), []
    skeletal.prune(
        model, batches, density=0.2, method=method, steps=4, batches_per_step=2, on_step=seen.append,
        **as_in("force-code"),
    )  # fmt: skip
    net, stream = copy.deepcopy(model).train(), itertools.cycle(batches)
    dense = [layer.weight.detach().clone() for layer in layers(net)]
    masks = [torch.ones_like(weight) for weight in dense]
    for step in seen:
        summed = [0.0] * len(dense)
        for _ in range(2):
            summed = [s + g for s, g in zip(summed, gradients(net, nll_loss, next(stream)), strict=True)]
        now = [layer.weight.detach() for layer in layers(net)]
        saliency = [criterion(w, n, g / 2) for w, n, g in zip(dense, now, summed, strict=True)]
        if method != "grasp-it":  # of which we take the root
            assert_scores(step.scores, saliency)
        if not resurrects:
            least = min(float(s.min()) for s in saliency)
            saliency = [s.masked_fill(mask == 0, least) for s, mask in zip(saliency, masks, strict=True)]
        threshold = torch.cat([s.flatten() for s in saliency]).topk(step.kept).values[-1]
        masks = [(s >= threshold).float() for s in saliency]
        for layer, weight, mask in zip(layers(net), dense, masks, strict=True):
            layer.weight.data = weight * mask
        assert all(torch.equal(ours, mask.bool()) for ours, mask in zip(step.mask.values(), masks, strict=True))


def test_grasp_code_scores_as_the_public_code_on_the_two_halves_of_its_batch():
    model, halves, seen = convnet(), images(2), []
    skeletal.prune(
        model, halves, density=0.5, method="grasp", batches_per_step=2, on_step=seen.append, **as_in("grasp-code")
    )
    net = copy.deepcopy(model).train()
    weights = [layer.weight for layer in layers(net)]
    first = [torch.autograd.grad(cross_entropy(net(x) / 200, y), weights) for x, y in halves]
    g = [one + two for one, two in zip(*first, strict=True)]
    for x, y in halves:
        second = torch.autograd.grad(cross_entropy(net(x) / 200, y), weights, create_graph=True)
        sum((a * b).sum() for a, b in zip(g, second, strict=True)).backward()
    # They remove the largest -w Hg. Ours are means over the halves where theirs are sums: a quarter.
    expected = [(weight * weight.grad).detach() / 4 for weight in weights]
    largest = max(score.abs().max() for score in expected)
    assert largest > 0
    for ours, theirs in zip(seen[0].scores.values(), expected, strict=True):
        torch.testing.assert_close(ours / largest, theirs / largest, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("code", ["synflow-code", "pysnip"])
def test_snip_of_synaptic_flow_and_of_pysnip(code):
    model, batches, seen = convnet(), images(2), []
    model[1].running_var.fill_(3.0)  # that evaluation mode has something to differ in
    skeletal.prune(model, batches, density=0.5, method="snip", batches_per_step=2, on_step=seen.append, **as_in(code))
    net = copy.deepcopy(model).train(code == "pysnip")
    weights = [layer.weight.detach() for layer in layers(net)]
    one, two = ([w * g for w, g in zip(weights, gradients(net, cross_entropy, b), strict=True)] for b in batches)
    if code == "pysnip":
        expected = [(a.abs() + b.abs()) / 2 for a, b in zip(one, two, strict=True)]
    else:
        expected = [(a + b).abs() / 2 for a, b in zip(one, two, strict=True)]
    assert_scores(seen[0].scores, expected)


@pytest.mark.parametrize("code", AS_IN)
def test_the_arguments_are_those_the_settings_resolve_to(code):
    pruning, arguments = resolve(Pruning(as_in=code), "quick"), as_in(code)
    assert arguments == {"loss": LOSSES[pruning.loss], "average": pruning.average, "bn_mode": pruning.bn_mode}
    assert skeletal.prune(convnet(), images(), density=0.1, method="snip", **arguments).kept > 0


def test_the_papers_choices_are_the_defaults_of_prune():
    plain = skeletal.prune(convnet(), images(), density=0.1, steps=3)
    assert skeletal.prune(convnet(), images(), density=0.1, steps=3, **as_in("paper")).metadata == plain.metadata


def test_a_code_that_is_not_known():
    with pytest.raises(
        ValueError, match=r"unknown as-in 'force'\. Did you mean 'force-code'\? There are paper, force-c"
    ):
        as_in("force")


def test_the_mask_of_a_run_tells_whose_choices_it_follows():
    setup, found = Setup(device="cpu"), {}
    data = finding.load_data(setup)
    for code in AS_IN:
        pruning = resolve(Pruning(method="snip", batches_per_step=2, as_in=code), "quick")
        model = finding.create_model(setup, data)
        found[code] = finding.find_mask(model, data, setup, pruning, progress=False)
    told = {
        code: tuple(mask.metadata[key] for key in ("as_in", "loss", "average", "bn_mode", "sampling"))
        for code, mask in found.items()
    }
    assert told == {
        "paper": ("paper", "default", "signed", "train", "plain"),
        "force-code": ("force-code", "nll_loss", "signed", "train", "plain"),
        "grasp-code": ("grasp-code", "tempered", "signed", "train", "balanced"),
        "synflow-code": ("synflow-code", "default", "signed", "eval", "plain"),
        "pysnip": ("pysnip", "default", "absolute", "train", "plain"),
    }
    assert len({mask.digest for mask in found.values()}) == len(AS_IN)


def test_the_same_settings_are_the_same_run_whoever_chose_them():
    one, two = Pruning(as_in="force-code"), Pruning(loss="nll")
    assert experiment.identity(resolve(one, "quick")) == experiment.identity(resolve(two, "quick"))
    assert experiment.identity(resolve(one, "quick"))["loss"] == "nll"
