"""Masks that move in the harness's loop: exact, resumed to the bit, the same dense and on the engine."""

import json
import signal
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

import skeletal
from skeletal.core.masks.mask import Mask
from skeletal.engine.optimizer_state import carry_over
from skeletal.harness.config import UPDATES, Pruning, Setup, Training, resolve
from skeletal.harness.console.interrupt import Interrupted
from skeletal.harness.runs import experiment, review
from skeletal.harness.training import checkpoint
from skeletal.harness.training.moving import rule_of
from tests.cases import convnet, images, random_mask
from tests.harness.training.blobs import TRAINING, blobs, folder, run, same, timeless

IMAGES = (3, 6, 6)
GENTLE = replace(TRAINING, lr=0.01, epochs=2)  # of five steps each
MOVING = {
    "set": dict(update="set", update_every=3),
    "rigl": dict(update="rigl", update_every=3, update_fraction=0.5, update_end=1.0),
    "gradual": dict(update="gradual", update_every=3, update_density=0.05, update_end=1.0),
}


def moving(update, engine="dense"):
    return replace(GENTLE, engine=engine, **MOVING[update])


def start(density=0.5):
    return Mask(random_mask(convnet(), density), {"method": "random"})


def by_hand(model, data, training, mask):
    """The loop of the how-to page, on torch's own optimizer."""
    skeleton = mask.attach(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=training.lr, momentum=0.9, weight_decay=5e-4)
    update = skeletal.MaskUpdate(skeleton, optimizer, rule_of(training, 5), steps=10)
    torch.manual_seed(0)
    for epoch in range(2):
        for x, y in data.train.batches(16, train=True, seed=0, epoch=epoch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            update.step()
        optimizer.param_groups[0]["lr"] = training.lr / 10  # both milestones round to epoch 1
    return update.mask


@pytest.mark.parametrize("engine", ["dense", "sparse"])
@pytest.mark.parametrize("update", MOVING)
def test_a_training_moves_its_mask_as_a_loop_of_ones_own_does(tmp_path, update, engine):
    training = replace(moving(update, engine), milestones=(0.5,))
    expected, found, mask, place = convnet(), convnet(), start(), folder(tmp_path)
    final = by_hand(expected, blobs(IMAGES), training, mask)
    mask.save(place.path / "mask.safetensors")
    result = run(found, blobs(IMAGES), training, mask=mask, folder=place)
    left = Mask.load(place.path / "mask.safetensors")
    assert result.engine == engine and left == final != mask
    assert Mask.load(place.path / "starting-mask.safetensors") == mask
    assert left.metadata == {"method": f"random-{update}", "connected": True}
    left.check(found)
    if engine == "dense":
        assert same(dict(found.state_dict()), dict(expected.state_dict()))
    else:  # of dead channels, which a compiled network does not have, values may differ: not so their effect
        x = blobs(IMAGES).test.x
        torch.testing.assert_close(found.eval()(x), expected.eval()(x), rtol=1e-3, atol=1e-5)
        if update != "gradual":
            torch.testing.assert_close(found.state_dict(), expected.state_dict(), rtol=1e-3, atol=1e-5)
    densities = [row["density"] for row in place.metrics()]
    kept = [round(density * mask.total) for density in densities]
    assert kept == ([mask.kept] * 2 if update != "gradual" else [kept[0], round(0.05 * mask.total)])


@pytest.mark.parametrize(
    ("update", "engine", "stop_at"),
    [
        ("rigl", "dense", (0, 1)),  # the next step is an update
        ("rigl", "dense", (0, 2)),  # it was one
        ("set", "dense", (1, 2)),  # neither
        ("gradual", "dense", (0, 2)),
        ("rigl", "sparse", (0, 1)),
        ("set", "sparse", (0, 2)),
        ("gradual", "sparse", (1, 2)),
    ],
)
def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path, update, engine, stop_at):
    training, whole, parts = moving(update, engine), folder(tmp_path, "whole"), folder(tmp_path, "parts")
    mask, expected, resumed = start(0.1), convnet(), convnet()  # at which channels are dead, and come alive
    run(expected, blobs(IMAGES), training, mask=mask, folder=whole)
    data = blobs(IMAGES, before={stop_at: lambda: signal.raise_signal(signal.SIGINT)})
    with pytest.raises(Interrupted):
        run(convnet(), data, training, mask=mask, folder=parts)
    torch.manual_seed(99)
    run(resumed, blobs(IMAGES), training, mask=mask, folder=parts)
    assert same(dict(expected.state_dict()), dict(resumed.state_dict()))
    a, b = checkpoint.load(whole.path), checkpoint.load(parts.path)
    for part in ("engine", "model", "optimizer", "scheduler", "update", "rng"):
        assert same(a[part], b[part]), part
    assert timeless(whole.metrics()) == timeless(parts.metrics())


class Crooked(nn.Module):
    """Layers in another order than they are called in, one of them never."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(7)
        self.head, self.unused = nn.Linear(16, 3), nn.Linear(16, 16)
        self.norm, self.conv = nn.BatchNorm2d(16), nn.Conv2d(3, 16, 3)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


def test_a_network_with_an_unused_layer_moves_and_resumes_on_the_engine_as_dense(tmp_path):
    mask, found = Mask(random_mask(Crooked(), 0.8), {"method": "random"}), {}
    for engine, stop_at in (("dense", None), ("sparse", None), ("sparse", (1, 1))):
        training, place, model = moving("set", engine), folder(tmp_path, f"{engine}-{stop_at}"), Crooked()
        if stop_at is not None:
            data = blobs(IMAGES, before={stop_at: lambda: signal.raise_signal(signal.SIGINT)})
            with pytest.raises(Interrupted):
                run(Crooked(), data, training, mask=mask, folder=place)
        run(model, blobs(IMAGES), training, mask=mask, folder=place)
        found[engine, stop_at] = dict(model.state_dict()), checkpoint.load(place.path)["optimizer"]["state"]
    whole = found["sparse", None]
    assert same(found["sparse", (1, 1)], whole)
    torch.testing.assert_close(whole[0], found["dense", None][0], rtol=1e-3, atol=1e-5)
    shapes = {name: weight.shape for name, weight in Crooked().named_parameters()}
    assert whole[1] and all(shapes[name] == entries["momentum_buffer"].shape for name, entries in whole[1].items())


def test_an_optimizer_keeps_what_it_remembers_on_its_way_to_a_compiled_network_and_back():
    model, mask = convnet(), Mask(random_mask(convnet(), 0.05))
    groups = [{"params": model[:3].parameters(), "lr": 0.02}, {"params": model[3:].parameters()}]
    optimizer = torch.optim.AdamW(groups, lr=0.01)
    mask.attach(model)
    for x, y in images(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    before = {name: dict(optimizer.state[weight]) for name, weight in model.named_parameters()}
    fast = skeletal.compile(model, mask, images(1)[0][0], path="sparse")
    assert fast.network.get_parameter("1.weight").shape != model[1].weight.shape  # dead channels are gone
    carry_over(optimizer, model, fast)
    names = [[name for name, _ in fast.named_parameters() if int(name[0]) // 3 == 0], 6]
    assert [len(group["params"]) for group in optimizer.param_groups] == [len(names[0]), names[1]]
    for name, weight in fast.named_parameters():
        entries = optimizer.state[weight]
        assert entries["step"] == before[name]["step"]
        if name in mask and weight.dim() == 1:
            layer = fast.sparse_layers()[name.removesuffix(".weight")]
            dense = torch.zeros(layer.shape).flatten().index_copy(0, layer.positions, entries["exp_avg"])
            assert dense.sum() == pytest.approx(float(before[name]["exp_avg"].sum()), abs=1e-6)
            assert entries["exp_avg"].shape == weight.shape
    carry_over(optimizer, fast, model)
    alive = fast._original.slices
    for name, weight in model.named_parameters():
        for kind, value in optimizer.state[weight].items():
            lost = before[name][kind] != value
            if lost.any():  # in a removed channel only
                kept = [index for index in alive[name] if index is not None]
                assert kept and not lost.index_select(0, kept[0]).any(), (name, kind)
    assert [group["lr"] for group in optimizer.param_groups] == [0.02, 0.01]


@pytest.mark.parametrize("apart", [False, True])
def test_an_optimizer_keeps_other_modules_parameters(apart):
    model, head, tail = convnet(), nn.Linear(10, 4), nn.Linear(4, 2)
    mask, data = Mask(random_mask(convnet(), 0.2)), images(3)
    groups = [{"params": [*head.parameters()]}, {"params": [*model.parameters(), *tail.parameters()], "lr": 0.01}]
    whole = [*head.parameters(), *model.parameters(), *tail.parameters()]
    optimizer = torch.optim.SGD(groups if apart else whole, lr=0.1, momentum=0.9)

    def step(network):
        optimizer.zero_grad()
        tail(head(network(data[0][0]))).square().sum().backward()
        optimizer.step()

    step(model)
    others = [*head.parameters(), *tail.parameters()]
    before = [optimizer.state[weight]["momentum_buffer"].clone() for weight in others]
    fast = skeletal.compile(model, mask, data[0][0], path="sparse")
    for source, target in ((model, fast), (fast, model)):
        carry_over(optimizer, source, target)
        listed = [weight for group in optimizer.param_groups for weight in group["params"]]
        expected = [*head.parameters(), *target.parameters(), *tail.parameters()]
        assert [*map(id, listed)] == [*map(id, expected)]
        assert optimizer.state.keys() == set(expected)
        for weight, momentum in zip(others, before, strict=True):
            assert torch.equal(optimizer.state[weight]["momentum_buffer"], momentum)
    assert [len(group["params"]) for group in optimizer.param_groups] == (
        [2, len(whole) - 2] if apart else [len(whole)]
    )
    step(model)


def test_auto_measures_again_where_half_of_the_weights_is_gone(tmp_path, monkeypatch):
    from skeletal.engine import autotune

    counts = []

    def measure(network, layers, *_):
        counts.append(sum(layer.values.numel() for layer in layers.values()))
        return {"times": {}, "steps": {}, "sparse": list(layers), "chosen": "each as was faster"}

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(autotune, "measure", measure)
    training = replace(moving("gradual", "auto"), epochs=4, update_every=2)  # to 0.05 in ten updates
    result = run(convnet(), blobs(IMAGES), training, mask=start(1.0))
    assert result.engine == "auto: each as was faster"
    assert len(counts) == 4 and all(2 * after < before for before, after in pairwise(counts))


def test_defaults_of_the_settings_are_those_of_the_rules():
    for update, rule in (("set", skeletal.SET(every=7)), ("rigl", skeletal.RigL()),
                         ("gradual", skeletal.Gradual(density=0.05))):  # fmt: skip
        density = {"update_density": 0.05} if update == "gradual" else {}
        resolved = resolve(Training(update=update, **density), "quick")
        assert rule_of(resolved, 7) == rule_of(Training(update=update, **density), 7) == rule
    assert set(UPDATES) == {"none", "set", "rigl", "gradual"} and rule_of(Training(), 7) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(update="rigle"), "unknown update 'rigle'. Did you mean 'rigl'"),
        (dict(update_every=3), "update_every is given, which --update none does not take"),
        (dict(update="gradual"), "needs --update-density"),
        (dict(update="rigl", update_density=0.1), "update_density is given, which --update rigl"),
        (dict(update="set", update_end=0.0), r"update_end is 0\.0; it is a fraction"),
    ],
)
def test_settings_of_an_update_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        resolve(Training(**settings), "quick")


def test_what_cannot_move_is_refused():
    with pytest.raises(ValueError, match="--update set moves a mask, and a dense training has none"):
        run(convnet(), blobs(IMAGES), moving("set"))
    with pytest.raises(ValueError, match="never moves in 10: choose a smaller every"):
        run(convnet(), blobs(IMAGES), replace(GENTLE, update="rigl"), mask=start())


@pytest.mark.parametrize("method", ["dense", "random-erk"])
def test_a_run_from_end_to_end(tmp_path, method):
    update = dict(update="gradual", update_density=0.05) if method == "dense" else dict(update="rigl")
    training = resolve(Training(epochs=1, batch_size=256, engine="dense", update_every=1, **update), "quick")
    pruning = resolve(Pruning(method=method, density=None if method == "dense" else 0.05), "quick")
    place, result = experiment.run(Setup(device="cpu"), pruning, training, root=tmp_path, progress=False)
    label = f"{method}-{training.update}"
    assert f"-{label}-0.05-" in place.path.name and result["method"] == label
    assert result["kept"] == round(0.05 * result["prunable"]) and result["connected"]
    assert json.loads((place.path / "result.json").read_text()) == result
    assert review.evaluate_run(place.path).loss == pytest.approx(result["test"]["loss"])
    assert experiment.run(Setup(device="cpu"), pruning, training, root=tmp_path, progress=False)[1] == result


@pytest.mark.parametrize(("every", "told"), [(1, False), (2, True)])
def test_gradual_pruning_in_few_updates_is_told(tmp_path, capsys, every, told):
    update = dict(update="gradual", update_density=0.2, update_end=1.0, update_every=every)
    training = resolve(Training(epochs=3, batch_size=300, engine="dense", **update), "quick")  # 15 steps
    pruning = resolve(Pruning(method="dense"), "quick")
    experiment.run(Setup(device="cpu"), pruning, training, root=tmp_path)
    hint = "gradual pruning has 7 updates in these 15 steps, each of which cuts deep: --update-every 1 makes them"
    assert (hint in " ".join(capsys.readouterr().err.split())) == told


@pytest.mark.parametrize(
    ("method", "update", "message"),
    [
        ("dense", dict(update="rigl", update_every=1), "the mask keeps all weights"),
        ("force", dict(update="rigl"), "never moves in 6: choose a smaller every"),
        (
            "force",
            dict(update="gradual", update_density=0.2, update_every=1),
            "choose a density above 0 and at most 0.09",
        ),
    ],
)
def test_a_run_refuses_an_update_that_does_nothing_before_it_prunes(tmp_path, monkeypatch, method, update, message):
    def never(*_, **__):
        raise AssertionError("pruned")

    monkeypatch.setattr(experiment, "find_mask", never)
    training = resolve(Training(epochs=1, batch_size=256, **update), "quick")
    with pytest.raises(ValueError, match=message):
        pruning = resolve(Pruning(method=method), "quick")
        experiment.run(Setup(device="cpu"), pruning, training, root=tmp_path, progress=False)
    assert not [place for place in tmp_path.iterdir() if place.is_dir()]
