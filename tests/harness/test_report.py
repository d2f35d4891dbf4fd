import pytest
import torch
from matplotlib.image import imread

from skeletal import Mask
from skeletal.harness.report import COLOURS, layer_table, plot_accuracy, plot_layers, style


def mask(first, second=4, **metadata):
    """Two layers of 12 and 2,000 weights, so many of them kept."""
    layers = {"stem.weight": torch.zeros(3, 4), "head.weight": torch.zeros(2000, 1)}
    for layer, kept in zip(layers.values(), (first, second), strict=True):
        layer.view(-1)[:kept] = 1
    return Mask(layers, metadata)


MASKS = {"force": mask(5, 1234, connected=True), "snip": mask(0, connected=False), "my own": mask(1)}
RESULTS = [
    {"method": "dense", "density": 1.0, "test": {"top1": 99.0}},
    *(
        {"method": method, "density": density, "test": {"top1": top1}}
        for method, density, top1 in [("force", 0.1, 98.0), ("force", 0.0199997, 97.0), ("snip", 0.1, 96.0)]
    ),
]
FIGURES = {
    "layers": lambda path: plot_layers(MASKS, path),
    "accuracy": lambda path: plot_accuracy(RESULTS, path, "a title"),
}


def test_a_table_of_layers():
    assert layer_table(MASKS).splitlines() == [
        "layer           weights  force       snip   my own",
        "stem.weight          12      5  0 (empty)        1",
        "head.weight       2,000  1,234          4        4",
        "kept              2,012  1,239          4        5",
        "empty layers                 0          1        0",
        "path to output             yes         no  unknown",
    ]


def test_a_table_in_markdown():
    lines = layer_table(MASKS, markdown=True).splitlines()
    assert lines[1] == "|---|---:|---:|---:|---:|"
    assert [cell.strip() for cell in lines[2].split("|")] == ["", "stem.weight", "12", "5", "0 (empty)", "1", ""]
    assert len({len(line) for line in (lines[0], *lines[2:])}) == 1


@pytest.mark.parametrize(
    "other",
    [
        Mask({"stem.weight": torch.ones(3, 4)}),
        Mask({"stem.weight": torch.ones(4, 3), "head.weight": torch.ones(2000, 1)}),
    ],
)
def test_masks_of_different_networks_have_no_common_table(other, tmp_path):
    masks = {"mine": mask(1), "other": other}
    with pytest.raises(ValueError, match="other is a mask of another network than mine"):
        layer_table(masks)
    with pytest.raises(ValueError, match="other is a mask of another network than mine"):
        plot_layers(masks, tmp_path / "layers.png")


@pytest.mark.parametrize("figure", FIGURES)
@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_the_same_figure_is_the_same_file(tmp_path, figure, kind):
    one, two = tmp_path / f"one.{kind}", tmp_path / "a" / "folder" / f"two.{kind}"
    FIGURES[figure](one)
    FIGURES[figure](two)
    assert one.read_bytes() == two.read_bytes()
    assert one.stat().st_size > 5000


def test_a_png_is_a_picture(tmp_path):
    FIGURES["layers"](tmp_path / "layers.PNG")
    picture = imread(tmp_path / "layers.PNG")
    assert picture.ndim == 3 and picture.min() < picture.max()


@pytest.mark.parametrize("figure", FIGURES)
@pytest.mark.parametrize("name", ["figure.gif", "figure"])
def test_other_kinds_of_file_are_refused(tmp_path, figure, name):
    with pytest.raises(ValueError, match=rf"{name}: the name has to end in \.png, \.svg or \.pdf"):
        FIGURES[figure](tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_mask_with_an_empty_layer_still_shows_its_curve_and_its_cross(tmp_path):
    plot_layers({"nearly empty": mask(0, 1)}, tmp_path / "one.png")
    plot_layers({"nearly empty": mask(1, 1)}, tmp_path / "none.png")
    colour = torch.tensor([int(style("nearly empty", 0)["color"][i : i + 2], 16) / 255 for i in (1, 3, 5)])
    shown = [
        (torch.from_numpy(imread(tmp_path / f"{name}.png"))[..., :3] - colour).abs().amax(2) < 0.02
        for name in ("one", "none")
    ]
    assert all(pixels.sum() > 100 for pixels in shown)
    assert not torch.equal(*shown)  # a cross in one, a point of the curve in the other


def test_the_dense_network_alone_is_drawn_at_its_accuracy(tmp_path):
    for name, top1 in (("high", 99.0), ("again", 99.0), ("low", 50.0)):
        plot_accuracy([RESULTS[0] | {"test": {"top1": top1}}], tmp_path / f"{name}.png", "dense only")
    high, again, low = (imread(tmp_path / f"{name}.png") for name in ("high", "again", "low"))
    assert (high == again).all() and (high != low).any()


def test_a_method_has_one_colour_everywhere():
    assert style("force", 0)["color"] == style("force-0.01-1a2b", 5)["color"] == COLOURS["force"]
    assert style("force-regrow", 0)["color"] == COLOURS["force-regrow"]
    assert style("snip-mb", 0)["color"] == COLOURS["snip-mb"]
    assert style("mine", 0)["color"] not in COLOURS.values()
    assert style("mine", 0) != style("mine", 1)
    assert len(set(COLOURS.values())) == len(COLOURS)
