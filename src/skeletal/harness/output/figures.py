"""Figures as files: whole or not at all, the same figure the same bytes."""

import math
from io import BytesIO
from pathlib import Path
from typing import Any

from skeletal.core.extras import extra
from skeletal.core.files import write_atomically

_DPI = 150


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure, whole or not at all; see `render`.

    Raises:
        ValueError: `path` is not the name of a picture.

    """
    path = Path(path)
    require_picture(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, render(figure, path.suffix.lower()[1:]))


def log_x(axes: Any) -> None:
    """A logarithmic horizontal axis, once everything is drawn, with numbers that do not lie on each other."""
    with extra("run"):
        from matplotlib.ticker import (
            LogFormatterSciNotation,
            LogLocator,
            MaxNLocator,
            NullFormatter,
            ScalarFormatter,
        )

    axes.set_xscale("log")
    low, high = sorted(axes.get_xlim())
    if high < 3 * low:
        axes.xaxis.set_major_locator(MaxNLocator(3))
        axes.xaxis.set_major_formatter(ScalarFormatter())
    elif high < 50 * low:  # powers of 10 alone would be one number, or none
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(LogFormatterSciNotation(minor_thresholds=(math.inf, math.inf)))
    axes.xaxis.set_minor_formatter(NullFormatter())


def require_picture(path: Path) -> None:
    """Check that a file has the name of a picture.

    Raises:
        ValueError: it has not.

    """
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise ValueError(f"cannot draw into {path}: the name has to end in .png, .svg or .pdf")


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
    """Half the size, without a visible difference: a figure has few colours and their mixtures at edges."""
    with extra("run"):
        from PIL import Image

    file = BytesIO()
    picture = Image.open(png).convert("RGB").quantize(255, dither=Image.Dither.NONE)
    picture.save(file, "png", optimize=True, dpi=(_DPI, _DPI))
    return file.getvalue()
