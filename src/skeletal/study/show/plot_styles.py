"""Colours and marks of a figure's series: a method always has its own, a quantity such as T a row of shades."""

from collections.abc import Collection, Iterable
from itertools import cycle
from typing import Any

from skeletal.core.extras import extra
from skeletal.harness.output.palette import COLOURS, curve_style

_METHODS = (
    "force", "snip", "snip-mb", "grasp", "grasp-mb", "grasp-it", "synflow", "random",
    "force-floor", "prospr", "ntk-sap", "px", "phew", "npb", "random-erk",
)  # fmt: skip
_MARKERS = dict(zip(_METHODS, "osD^vP*X8<>phdH", strict=True))
_IN_ORDER = "osD^vP*X<>hp"
_DENSE = {"color": COLOURS["dense"], "linestyle": (0, (4, 2)), "marker": ""}


def method_of(series: str) -> str | None:
    """Return the method a legend label names, "force" for "FORCE" and for "FORCE, T=60"; `None` if it names none."""
    name = series.lower()
    begins = (m for m in COLOURS if name.startswith(m) and not name[len(m) : len(m) + 1].isalnum())
    return max(begins, key=len, default=None)


def looks(series: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return keywords for matplotlib's `plot`, for each label of a figure; no two labels get the same.

    A method has its colour and its mark in every figure. Variants of one ("FORCE, T=10", "FORCE-SR") get shades of
    its colour, the last of them the colour itself unless the plain method is there, too. Labels with a number and no
    method are values of one quantity, and get dark to light in their order; others get colours no method has.
    """
    labels = list(dict.fromkeys(series))
    families: dict[str, list[str]] = {}
    for label in labels:
        families.setdefault(method_of(label) or "", []).append(label)
    strangers = families.pop("", [])
    taken = {_MARKERS[method] for method in families if method in _MARKERS}
    found = _in_order([label for label in strangers if any(map(str.isdigit, label))], taken)
    for position, label in enumerate(label for label in strangers if label not in found):
        found[label] = curve_style(label, position)
    for method, members in families.items():
        if method == "dense" and len(members) == 1:
            found[members[0]] = dict(_DENSE)
        else:
            members.sort(key=lambda label: label.lower() == method)  # the plain method is the last, and the strongest
            for position, label in enumerate(members):
                found[label] = _variant(method, position, len(members))
    return {label: found[label] for label in labels}


def _in_order(labels: list[str], taken: Collection[str]) -> dict[str, dict[str, Any]]:
    """Shades from dark to light; beside methods, whose colours some come near, dashed and with marks not `taken`."""
    with extra("run"):
        from matplotlib import colormaps
        from matplotlib.colors import to_hex

    # The light end of the map would be lost on white.
    colours = [to_hex(colormaps["viridis"](0.85 * i / max(1, len(labels) - 1))) for i in range(len(labels))]
    marks = cycle([mark for mark in _IN_ORDER if mark not in taken])
    line = (0, (5, 1)) if taken else "-"
    return {
        label: {"color": colour, "linestyle": line, "marker": mark}
        for label, colour, mark in zip(labels, colours, marks, strict=False)
    }


def _variant(method: str, position: int, of: int) -> dict[str, Any]:
    with extra("run"):
        from matplotlib.colors import to_hex, to_rgb

    fade = 0.65 * (1 - (position + 1) / of)
    red, green, blue = (1 - (1 - part) * (1 - fade) for part in to_rgb(COLOURS[method]))
    colour = to_hex((red, green, blue)).upper()
    last = position == of - 1
    mark = _MARKERS.get(method, "h") if last else _IN_ORDER[(position + 3) % len(_IN_ORDER)]
    return {"color": colour, "linestyle": "-" if last else (0, (5, 1)), "marker": mark}
