"""Kept weights of each layer, for several masks of one network: a table, a figure."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from skeletal.core.extras import extra
from skeletal.core.masks.mask import Mask
from skeletal.core.table import Table
from skeletal.harness.output.figures import save_figure
from skeletal.harness.output.palette import curve_style


def layer_table(masks: Mapping[str, Mask], *, markdown: bool = False) -> str:
    """Kept weights per layer, one column per mask; the last rows are totals and the number of empty layers.

    Raises:
        ValueError: the masks are of different networks.

    """
    first = _of_one_network(masks)
    rows = []
    for layer, keep in first.items():
        kept = (int(mask[layer].sum()) for mask in masks.values())
        rows.append([layer, f"{keep.numel():,}", *(f"{k:,}" if k else "0 (empty)" for k in kept)])
    rows.append(["kept", f"{first.total:,}", *(f"{mask.kept:,}" for mask in masks.values())])
    rows.append(["empty layers", "", *(str(len(mask.empty_layers)) for mask in masks.values())])
    paths = {True: "yes", False: "no", None: "unknown"}
    rows.append(["path to output", "", *(paths[mask.metadata.get("connected")] for mask in masks.values())])
    return Table(["layer", "weights", *masks], rows).shown(markdown=markdown)


def of_one_network(masks: Mapping[str, Mask]) -> list[dict[str, Mask]]:
    """The masks, grouped by network."""
    groups: dict[tuple, dict[str, Mask]] = {}
    for name, mask in masks.items():
        groups.setdefault(tuple((layer, keep.shape) for layer, keep in mask.items()), {})[name] = mask
    return list(groups.values())


def _of_one_network(masks: Mapping[str, Mask]) -> Mask:
    first = next(iter(masks.values()))
    for name, mask in masks.items():
        if list(mask) != list(first) or any(mask[layer].shape != first[layer].shape for layer in first):
            raise ValueError(f"{name} is not a mask of the same network as {next(iter(masks))}; show them one by one")
    return first


def _columns(names: Iterable[str]) -> int:
    """How many entries of a legend stand side by side above a figure of 8 inches, at 9 points."""
    return max(1, min(4, 96 // (max(map(len, names)) + 8)))


def plot_layers(masks: Mapping[str, Mask], path: Path) -> None:
    """Kept weights of each layer, one curve per mask, log scale; below 1, a cross for each empty layer.

    Raises:
        ValueError: the masks are of different networks, or `path` is not the name of a picture.

    """
    with extra("run"):
        from matplotlib.figure import Figure
        from matplotlib.ticker import NullLocator

    layers = list(_of_one_network(masks))
    figure = Figure(figsize=(8, 4.4), layout="constrained")
    axes = figure.subplots()
    for position, (name, mask) in enumerate(masks.items()):
        look = curve_style(name, position)
        kept = [int(mask[layer].sum()) or float("nan") for layer in layers]  # NaN breaks the line at an empty layer
        axes.plot(kept, label=name, linewidth=1.5, markersize=5, **look)
        empty = [x for x, layer in enumerate(layers) if not mask[layer].any()]
        row = [0.6 * 0.6**position] * len(empty)  # one row per mask, so that none hides another
        axes.plot(empty, row, "x", color=look["color"], markersize=7, markeredgewidth=2)
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.6 ** (len(masks) + 1))
    axes.axhline(0.8, color="black", linewidth=0.6)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else "")
    axes.yaxis.set_minor_locator(NullLocator())
    names = [layer.removesuffix(".weight") for layer in layers]
    axes.set_xticks(range(len(layers)), names, rotation=90, fontsize=8)
    axes.set_ylabel("weights kept (x: empty layer)")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=_columns(masks), fontsize=9, frameon=False)
    save_figure(figure, path)
