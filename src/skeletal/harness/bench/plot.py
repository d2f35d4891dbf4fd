"""The roofline as a figure."""

import statistics
from pathlib import Path
from typing import Any

from skeletal.core.extras import extra
from skeletal.harness.output.figures import save_figure
from skeletal.harness.output.palette import curve_style


def plot_roofline(result: dict[str, Any], path: Path) -> None:
    """Training steps of ours and of the masked dense network (a) under what the machine can do at most.

    Computing is counted in float32, with kept weights for ours and all of them for a; data movement is estimated (see
    `roofline.work`), so a point shows where a way without waste would reach the roof.

    Args:
        result: of `bench`.
        path: png, svg or pdf.

    """
    with extra("run"):
        from matplotlib.figure import Figure
        from matplotlib.ticker import NullFormatter

    machine = result["machine"]
    points = []
    for position, record in enumerate(result["masks"]):
        for key, what in (("ours", "kept"), ("ours16", "kept16"), ("a", "dense")):
            if (line := record["contestants"].get(key)) is None:
                continue
            work, seconds = record["work"][what], statistics.median(line["train_ms"]) / 1000
            label = f"{line['title']}, density {record['density']:.3g}"
            points.append((2 * work["macs"] / work["bytes"], 2e-9 * work["macs"] / seconds, label, key, position))
    peak, slope = 2e-9 * machine["float32"], 1e-9 * machine["bandwidth"]
    ridge = peak / slope
    intensities = [point[0] for point in points if point[0] > 0] + [ridge]
    ends = [min(intensities) / 3, max(intensities) * 3]

    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    axes = figure.subplots()
    axes.plot(
        [ends[0], ridge, ends[1]], [ends[0] * slope, peak, peak], color="black", linewidth=1, label="roof, float32"
    )
    for intensity, rate, label, key, position in points:
        name = {"ours": "force", "ours16": "grasp-it"}.get(key, "dense")
        looks = curve_style(name, position) | {"linestyle": ""}
        axes.plot([intensity], [rate], label=label, **looks)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("FLOP per byte moved (estimated)")
    axes.set_ylabel("GFLOP/s, over kept weights for ours")
    axes.set_title(f"{result['setting']['model']}, training step, batch {result['setting']['batch_size']}")
    axes.grid(alpha=0.3, which="both")
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    save_figure(figure, path)
