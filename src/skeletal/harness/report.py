"""Tables and figures of masks and results."""

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from skeletal.core.extras import extra
from skeletal.core.files import write_atomically
from skeletal.core.masks.mask import Mask

# One colour per method, the same in every figure: Okabe and Ito's palette and a few more, chosen so that the nine of
# the paper's figures stay apart for the red- and the green-blind, too: by 10 in OKLab, where black is 100 from white.
COLOURS = {
    "force": "#D55E00",
    "force-regrow": "#CC79A7",
    "grasp": "#E69F00",
    "grasp-mb": "#D2B993",
    "grasp-it": "#009E73",
    "grasp-iterative": "#882255",
    "snip": "#0072B2",
    "snip-mb": "#56B4E9",
    "synflow": "#332288",
    "magnitude": "#F0E442",
    "random": "#666666",
    "dense": "#000000",
}
_OTHERS = ("#999933", "#117733", "#AA4499", "#661100")
_MARKERS = "osD^vP*X"
_DPI = 150


def style(name: str, position: int) -> dict[str, Any]:
    """Colour and marker of a curve: by the method its name starts with (the longest that fits), else by position."""
    method = max((m for m in COLOURS if name == m or name.startswith(m)), key=len, default=None)
    colour = COLOURS[method] if method else _OTHERS[position % len(_OTHERS)]
    return {"color": colour, "marker": _MARKERS[position % len(_MARKERS)]}


def layer_table(masks: Mapping[str, Mask], *, markdown: bool = False) -> str:
    """Kept weights per layer, one column a mask; the last rows are totals and the number of empty layers.

    Raises:
        ValueError: the masks are of different networks.

    """
    first = _of_one_network(masks)
    rows = [["layer", "weights", *masks]]
    for layer, keep in first.items():
        kept = (int(mask[layer].sum()) for mask in masks.values())
        rows.append([layer, f"{keep.numel():,}", *(f"{k:,}" if k else "0 (empty)" for k in kept)])
    rows.append(["kept", f"{first.total:,}", *(f"{mask.kept:,}" for mask in masks.values())])
    rows.append(["empty layers", "", *(str(len(mask.empty_layers)) for mask in masks.values())])
    paths = {True: "yes", False: "no", None: "unknown"}
    rows.append(["path to output", "", *(paths[mask.metadata.get("connected")] for mask in masks.values())])
    return aligned(rows, markdown)


def _of_one_network(masks: Mapping[str, Mask]) -> Mask:
    first = next(iter(masks.values()))
    for name, mask in masks.items():
        if list(mask) != list(first) or any(mask[layer].shape != first[layer].shape for layer in first):
            raise ValueError(f"{name} is a mask of another network than {next(iter(masks))}; show them one by one")
    return first


def aligned(rows: list[list[str]], markdown: bool = False) -> str:
    """A table as text, the first row its heading, the first column to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for number, row in enumerate(rows):
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("| " + " | ".join(cells) + " |" if markdown else "  ".join(cells))
        if markdown and number == 0:
            lines.append("|" + "|".join(["---"] + ["---:"] * (len(row) - 1)) + "|")
    return "\n".join(lines)


def plot_layers(masks: Mapping[str, Mask], path: Path) -> None:
    """Kept weights of each layer, a curve a mask, log scale; below 1, a cross for each empty layer.

    Raises:
        ValueError: the masks are of different networks, or `path` is no picture's name.

    """
    with extra("run"):
        from matplotlib.figure import Figure
        from matplotlib.ticker import NullLocator

    layers = list(_of_one_network(masks))
    figure = Figure(figsize=(8, 4.4), layout="constrained")
    axes = figure.subplots()
    for position, (name, mask) in enumerate(masks.items()):
        look = style(name, position)
        kept = [int(mask[layer].sum()) or float("nan") for layer in layers]  # NaN breaks the line at an empty layer
        axes.plot(kept, label=name, linewidth=1.5, markersize=5, **look)
        empty = [x for x, layer in enumerate(layers) if not mask[layer].any()]
        row = [0.6 * 0.6**position] * len(empty)  # a row a mask, so that none hides another
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
    figure.legend(loc="outside upper center", ncols=4, fontsize=9, frameon=False)
    save_figure(figure, path)


def plot_accuracy(results: list[dict[str, Any]], path: Path, title: str) -> None:
    """Test accuracy against sparsity, a curve a method, as in the paper's Figure 1 and 2."""
    with extra("run"):
        from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    pruned = [result for result in results if result["method"] != "dense"]
    densities = sorted({round(result["density"], 4) for result in pruned}, reverse=True)
    for position, method in enumerate(dict.fromkeys(result["method"] for result in pruned)):
        top1 = {round(r["density"], 4): r["test"]["top1"] for r in pruned if r["method"] == method}
        places = [x for x, density in enumerate(densities) if density in top1]
        axes.plot(places, [top1[densities[x]] for x in places], label=method, linewidth=2, **style(method, position))
    for dense in (result for result in results if result["method"] == "dense"):
        axes.axhline(dense["test"]["top1"], color=COLOURS["dense"], linestyle="--", linewidth=1, label="dense")
    axes.set_xticks(range(len(densities)), [f"{100 * (1 - density):g}%" for density in densities])
    axes.set_xlabel("sparsity (weights removed before training)")
    axes.set_ylabel("test accuracy (%)")
    axes.set_title(title)
    axes.set_ylim(0, 102)
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, path)


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure, whole or not at all; see `render`.

    Raises:
        ValueError: `path` is no picture's name.

    """
    path = Path(path)
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise ValueError(f"cannot draw into {path}: the name has to end in .png, .svg or .pdf")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, render(figure, path.suffix.lower()[1:]))


def render(figure: Any, kind: str) -> bytes:
    """Return a figure as a "png", "svg" or "pdf"; without a date, so that the same figure is the same file."""
    with extra("run"):
        from matplotlib import rc_context

    metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind, {})
    # Text stays text. Few fonts, as svg names them at every word; Verdana is as wide as DejaVu.
    settings = {"svg.hashsalt": "skeletal", "svg.fonttype": "none", "font.sans-serif": ["DejaVu Sans", "Verdana"]}
    file = BytesIO()
    with rc_context(settings):
        figure.savefig(file, format=kind, dpi=_DPI, metadata=metadata)
    return _in_few_colours(file) if kind == "png" else file.getvalue()


def _in_few_colours(png: BytesIO) -> bytes:
    """Half the size, and no difference to be seen: a figure has few colours and their mixtures at edges."""
    with extra("run"):
        from PIL import Image

    file = BytesIO()
    picture = Image.open(png).convert("RGB").quantize(255, dither=Image.Dither.NONE)
    picture.save(file, "png", optimize=True, dpi=(_DPI, _DPI))
    return file.getvalue()
