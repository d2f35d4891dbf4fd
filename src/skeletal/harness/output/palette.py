"""One colour for each method, the same in every figure."""

from typing import Any

# Okabe and Ito's palette and a few more, chosen so that the nine of the paper's figures stay apart for the red- and the
# green-blind, too: by 10 in OKLab, where black is 100 from white.
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
    # What the paper does not have.
    "force-floor": "#CC6677",
    "prospr": "#999933",
    "ntk-sap": "#117733",
    "px": "#AA4499",
    "phew": "#661100",
    "npb": "#44AA99",
    "random-erk": "#A6A6A6",
}
_OTHERS = ("#7A5C00", "#005F73", "#B8336A", "#6B8E23")
_MARKERS = "osD^vP*X"
_DASHES = ("-", "--", "-.", ":")
"""the next one where all marks have been used: methods with a common colour would look alike"""


def curve_style(name: str, position: int) -> dict[str, Any]:
    """Colour, by the method its name starts with (the longest that fits), marker and dash, by position, of a curve."""
    method = max((m for m in COLOURS if name == m or name.startswith(m)), key=len, default=None)
    colour = COLOURS[method] if method else _OTHERS[position % len(_OTHERS)]
    turn, place = divmod(position, len(_MARKERS))
    return {"color": colour, "marker": _MARKERS[place], "linestyle": _DASHES[turn % len(_DASHES)]}
