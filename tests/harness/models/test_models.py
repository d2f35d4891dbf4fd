import subprocess
import sys
from dataclasses import astuple

import pytest
import torch
from torch import Tensor, nn

from skeletal.core.model.state.random_state import beside_torch
from skeletal.harness import models
from skeletal.harness.models import external

# network, classes, image side, then a row of the paper's Table 3:
# conv %, fully connected %, batch norm %, bias %, prunable %, total in millions
TABLE_3 = [
    ("resnet50-cifar", 10, 32, 99.69, 0.09, 0.11, 0.11, 99.78, 23.52),
    ("vgg19-cifar", 10, 32, 99.92, 0.03, 0.03, 0.03, 99.95, 20.04),
    ("resnet50-cifar", 100, 32, 98.91, 0.86, 0.11, 0.11, 99.78, 23.71),
    ("vgg19-cifar", 100, 32, 99.69, 0.25, 0.03, 0.03, 99.94, 20.08),
    ("resnet50-cifar", 200, 64, 98.06, 1.71, 0.11, 0.11, 99.78, 23.91),
    ("vgg19-cifar", 200, 64, 99.44, 0.51, 0.03, 0.03, 99.94, 20.13),
    ("resnet50", 1000, 224, 91.77, 8.01, 0.10, 0.11, 99.79, 25.56),
    ("vgg19_bn", 1000, 224, 13.93, 86.05, 0.01, 0.01, 99.98, 143.68),
]

# Two of the 48 printed numbers are not the rounded truth. (row, column): (what is printed, what is true)
MISPRINTS = {
    (0, 4): (
        99.78,
        23_467_712 / 23_520_842 * 100,
    ),  # 99.774; printed is the sum of the rounded 99.69 and 0.09
    (7, 2): (0.01, 5_504 / 143_678_248 * 100),  # 0.0038; printed fills the row up to 100.00
}


@pytest.mark.parametrize("row", range(8))
def test_table_3_of_the_paper(row):
    name, classes, side, *printed = TABLE_3[row]
    with torch.device("meta"):
        model = models.create(name, num_classes=classes, image_size=side)
    assert all(p.is_meta for p in model.parameters())
    for column, (ours, theirs) in enumerate(zip(astuple(models.parameter_shares(model)), printed, strict=True)):
        if (row, column) in MISPRINTS:
            misprint, truth = MISPRINTS[row, column]
            assert theirs == misprint != round(ours, 2)
            assert ours == pytest.approx(truth, rel=1e-12)
        else:
            assert round(ours, 2) == theirs


def test_shares_of_a_small_network_by_hand_with_a_tied_weight():
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4), nn.Conv2d(4, 2, 3))
    model[2].weight = model[0].weight
    conv, linear, norm, bias = 72, 16, 4, 4 + 4 + 4 + 2
    total = conv + linear + norm + bias
    expected = [100 * part / total for part in (conv, linear, norm, bias, conv + linear)] + [total / 1e6]
    assert astuple(models.parameter_shares(model)) == pytest.approx(expected)
    with pytest.raises(ValueError, match="ReLU has no parameters"):
        models.parameter_shares(nn.ReLU())


SHAPES = [
    ("resnet50-cifar", 3, 8),
    ("stable-resnet50-cifar", 1, 9),
    ("resnet20-cifar", 3, 32),
    ("resnet20-cifar", 3, 64),
    ("stable-resnet20-cifar", 1, 8),
    ("vgg19-cifar", 3, 16),
    ("vgg11-cifar", 3, 64),
    ("vgg-mini", 1, 8),
    ("vgg-mini", 3, 32),
    ("lenet5", 1, 12),
    ("lenet5", 1, 28),
    ("lenet5", 3, 32),
]


@pytest.mark.parametrize(("name", "channels", "side"), SHAPES)
def test_forward_and_fx_trace_agree(name, channels, side):
    model = models.create(name, num_classes=7, in_channels=channels, image_size=side, seed=0).eval()
    images = torch.randn(2, channels, side, side)
    traced = torch.fx.symbolic_trace(model)
    with torch.inference_mode():
        logits = model(images)
        assert logits.shape == (2, 7)
        assert logits.isfinite().all()
        torch.testing.assert_close(traced(images), logits, rtol=0, atol=0)
    leaves = {type(m) for m in model.modules() if not list(m.children())}
    assert leaves <= {
        *(nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.Linear, nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.Flatten),
        nn.Sequential,  # an identity shortcut
    }
    assert not any(m.inplace for m in model.modules() if isinstance(m, nn.ReLU))


def test_every_name_of_ours_has_a_forward_test():
    assert {name for name, *_ in SHAPES} == set(models.NAMES)


def test_parameters_do_not_depend_on_the_image_size():
    small, large = (models.create("resnet20-cifar", image_size=side, seed=0) for side in (32, 64))
    assert all(torch.equal(a, b) for a, b in zip(small.parameters(), large.parameters(), strict=True))


def _bottleneck_by_hand(state: dict[str, Tensor], name: str, x: Tensor, stride: int, scale: float) -> Tensor:
    """A block in evaluation mode with fresh statistics, where batch norm divides by sqrt(1 + eps)."""

    def conv(weight: str, x: Tensor, stride: int = 1) -> Tensor:
        w = state[f"{name}.{weight}"]
        return torch.conv2d(x, w, stride=stride, padding=w.shape[-1] // 2) / (1 + 1e-5) ** 0.5

    branch = conv("conv1.weight", x).clamp(min=0)
    branch = conv("conv2.weight", branch, stride).clamp(min=0)
    branch = conv("conv3.weight", branch)
    projected = f"{name}.shortcut.0.weight" in state
    return (branch * scale + (conv("shortcut.0.weight", x, stride) if projected else x)).clamp(min=0)


@pytest.mark.parametrize(("name", "scale"), [("resnet50-cifar", 1.0), ("stable-resnet50-cifar", 0.25)])
def test_residual_branches_are_scaled_by_one_over_root_l(name, scale):
    model = models.create(name, seed=3).double().eval()
    state = model.state_dict()
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    with torch.inference_mode():
        x = (torch.conv2d(images, state["conv1.weight"], padding=1) / (1 + 1e-5) ** 0.5).clamp(min=0)
        for stage, depth in enumerate((3, 4, 6, 3), start=1):
            for block in range(depth):
                stride = 2 if stage > 1 and block == 0 else 1
                x = _bottleneck_by_hand(state, f"layer{stage}.{block}", x, stride, scale)
        expected = x.mean((2, 3)) @ state["fc.weight"].T
        torch.testing.assert_close(model(images), expected)


@pytest.mark.parametrize(("name", "scale"), [("resnet50-cifar", 1 / 4), ("resnet20-cifar", 1 / 3)])
def test_stable_and_plain_resnets_share_weights_for_one_seed(name, scale):
    models_of_a_seed = [models.create(n, seed=1) for n in (name, f"stable-{name}")]
    plain, stable = (model.state_dict() for model in models_of_a_seed)
    assert plain.keys() == stable.keys()
    assert all(torch.equal(plain[k], stable[k]) for k in plain)
    assert [model.layer1[0].scale for model in models_of_a_seed] == pytest.approx([1.0, scale])


def _weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("init", ["auto", "own"])
def test_a_seed_fixes_the_weights_and_leaves_the_global_generator_alone(init):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = (_weights(models.create("vgg-mini", seed=s, init=init)) for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_seed_also_fixes_what_python_and_numpy_draw(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_random_xyz.py").write_text(
        "import random, numpy, torch\n"
        "def net():\n"
        "    made = torch.nn.Linear(2, 2)\n"
        "    made.weight.data = torch.tensor([[random.random(), numpy.random.rand()], [0, 0]])\n"
        "    return made\n"
    )
    before = beside_torch()
    first, again, other = (_weights(models.create("own_random_xyz:net", seed=s)) for s in (0, 0, 1))
    assert beside_torch() == before
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_without_a_seed_weights_come_from_the_global_generator():
    torch.manual_seed(5)
    first, second = (_weights(models.create("lenet5")) for _ in range(2))
    torch.manual_seed(5)
    assert torch.equal(_weights(models.create("lenet5")), first)
    assert not torch.equal(first, second)


def test_kaiming_normal_has_the_standard_deviation_it_claims():
    model = models.create("vgg-mini", seed=0)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            fan_in = module.weight[0].numel()
            standard = module.weight * (fan_in / 2) ** 0.5
            error = standard.numel() ** -0.5  # of the mean; the standard deviation's is smaller by sqrt(2)
            assert abs(standard.mean()) < 4 * error
            assert abs(standard.std() - 1) < 4 * error
            assert (standard.abs() > 2.6).any() or standard.numel() < 1000  # a uniform draw would stop at 1.73
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
        if getattr(module, "bias", None) is not None:
            assert (module.bias == 0).all()


@pytest.mark.parametrize(
    ("name", "init", "kaiming"),
    [
        ("torchvision:resnet50", "auto", True),
        ("resnet18", "auto", False),
        ("resnet18", "kaiming-normal", True),
        ("lenet5", "own", False),
    ],
)
def test_auto_means_kaiming_for_the_papers_networks_only(name, init, kaiming, monkeypatch):
    calls = []
    monkeypatch.setattr("skeletal.harness.models.factory.kaiming_normal_", calls.append)
    with torch.device("meta"):
        models.create(name, init=init)
    assert bool(calls) == kaiming


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("resnet50-cifra", "resnet50-cifar"), ("vgg19-bm", "vgg19_bn"), ("torchvision:resnet51", "resnet50")],
)
def test_an_unknown_name_gets_the_nearest_ones(name, nearest):
    with pytest.raises(ValueError, match=rf"unknown network '{name}'; did you mean .*{nearest}"):
        models.create(name)


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("VGG19_CIFAR", "vgg19-cifar"),
        ("ResNet18", "resnet18"),
        ("vgg19-bn", "vgg19_bn"),
        ("timm/ResNet18", "timm:resnet18"),
        ("TorchVision:vgg19-BN", "torchvision:vgg19_bn"),
        ("tests.cases:mlp", "tests.cases:mlp"),
    ],
)
def test_names_as_people_write_them(written, name):
    assert models.named(written) == name


OWN = """
from torch import nn

def net(num_classes, image_size):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * image_size**2, num_classes))

class Net(nn.Module):
    def __init__(self, **sizes):
        super().__init__()
        self.sizes = sizes

def no_net():
    return "nothing"
"""


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("nets_xyz.py", "nets_xyz:FUNCTION, where FUNCTION is one of net, Net, no_net"),
        ("nets_xyz", "nets_xyz:FUNCTION, where FUNCTION is one of net, Net, no_net"),
        ("./nets_xyz.py:net", "nets_xyz:net"),
        ("inside/one.py", "inside.one:only"),
        ("inside.one", "inside.one:only"),
        ("not_there.py", "not_there:FUNCTION"),
        ("broken_xyz.py", "broken_xyz:FUNCTION"),
        ("../elsewhere.py:net", "elsewhere:net"),
    ],
)
def test_a_file_is_no_network_and_the_functions_in_it_are_named(tmp_path, monkeypatch, name, written):
    (tmp_path / "nets_xyz.py").write_text(f"{OWN}\nraise SystemExit('read, not run')\n")
    (tmp_path / "broken_xyz.py").write_text("def net(:")
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "one.py").write_text("def _helper(): ...\ndef only(): ...\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"names a file: .* write {written}$"):
        models.named(name)


def test_a_network_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "own_networks_xyz.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    model = models.create("own_networks_xyz:net", num_classes=7, image_size=5, seed=0)
    assert model(torch.zeros(2, 3, 5, 5)).shape == (2, 7)
    again = models.create("own_networks_xyz:net", num_classes=7, image_size=5, seed=0)
    assert torch.equal(model[1].weight, again[1].weight)
    assert models.create("own_networks_xyz:Net", in_channels=1).sizes == {
        "num_classes": 10, "in_channels": 1, "image_size": 32,
    }  # fmt: skip
    for name, said in {
        "own_networks_xyz:nett": "has no function 'nett'; it has net, Net, no_net",
        "own_networks_xyz:no_net": "gives str, not a torch.nn.Module",
        "nowhere_xyz.nets:net": f"no module 'nowhere_xyz.nets'.*{tmp_path}",
    }.items():
        with pytest.raises(ValueError, match=said):
            models.create(name)
    (tmp_path / "own_networks_xyz_needy.py").write_text("import a_package_that_is_not_there")
    with pytest.raises(ValueError, match="needs a_package_that_is_not_there"):
        models.create("own_networks_xyz_needy:net")


def test_a_hopeless_name_gets_the_list_of_ours():
    with pytest.raises(ValueError, match="ours are resnet50-cifar, "):
        models.create("§§§§")


@pytest.mark.parametrize("name", ["torchvision:vgg-mini", "timm:lenet5", "fcn_resnet50", "hf-hub:resnet50"])
def test_a_prefix_forces_its_library_and_only_classifiers_count(name):
    with pytest.raises(ValueError, match="unknown network"):
        models.create(name)


@pytest.mark.parametrize("name", ["timm:test_vit", "test_vit"])
def test_without_timm_the_error_says_how_to_get_it(name, monkeypatch):
    monkeypatch.setattr(external, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"pip install 'skeletal\[timm\]'"):
        models.create(name)


@pytest.mark.parametrize(
    ("name", "smallest"),
    [("vgg19-cifar", 16), ("vgg11-cifar", 16), ("vgg-mini", 4), ("lenet5", 12), ("vgg19_bn", 32)],
)
def test_images_too_small_for_the_pools(name, smallest):
    side = smallest - 1
    with pytest.raises(ValueError, match=f"{name} leaves nothing of {side}x{side} .* {smallest}x{smallest}"):
        models.create(name, image_size=side)
    with torch.device("meta"):
        model = models.create(name, image_size=smallest).eval()
        assert model(torch.empty(1, 3, smallest, smallest)).shape == (1, 10)


@pytest.mark.parametrize(
    ("setting", "value"), [("num_classes", 0), ("in_channels", 0), ("image_size", -1), ("init", "he")]
)
def test_impossible_settings(setting, value):
    with pytest.raises(ValueError, match=f"{setting} is .*, not '?{value}"):
        models.create("vgg-mini", **{setting: value})


@pytest.mark.parametrize(
    ("name", "side"), [("resnet18", 32), ("googlenet", 64), ("vit_b_16", 32), ("squeezenet1_1", 64)]
)
def test_torchvision_names(name, side):
    with torch.device("meta"):
        model = models.create(name, num_classes=5, image_size=side)
        assert model(torch.empty(2, 3, side, side)).shape == (2, 5)
        with pytest.raises(ValueError, match=f"{name} takes images of 3 channels, not 1"):
            models.create(name, in_channels=1, image_size=side)


@pytest.mark.parametrize("name", ["test_resnet", "timm:test_vit", "test_vit.r160_in1k"])
def test_timm_names(name):
    pytest.importorskip("timm")
    with torch.device("meta"):
        model = models.create(name, num_classes=5, in_channels=1, image_size=64)
        assert model(torch.empty(2, 1, 64, 64)).shape == (2, 5)


def test_libraries_of_networks_are_imported_on_first_use():
    code = "import sys, skeletal.harness.models; sys.exit(bool({'torchvision', 'timm'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
