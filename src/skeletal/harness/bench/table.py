"""The result of a benchmark as text."""

import statistics
from collections.abc import Mapping
from typing import Any

from skeletal.core.table import Table
from skeletal.harness.bench.contestants import OURS

_COLUMNS = ("", "way", "training ms", "x ours", "inference ms", "x ours", "state MB", "peak MB", "differs by")
_LEGEND = (
    "x ours: the time over the faster of ours; state: weights, gradients, momentum and indices; peak: of one process",
    "differs by: the largest difference of an output from the masked dense network's, over the largest output",
)


def table(result: dict[str, Any]) -> str:
    """What `bench` returns, for people: machine and setting, then a table and the roofline of each mask."""
    where, setting, machine = result["where"], result["setting"], result["machine"]
    lines = [
        f"{where['cpu']} ({where['vector units']}), {where['cores']} cores, {where['threads']} threads,"
        f" torch {where['versions']['torch']}, skeletal {where['versions']['skeletal']}, {where['date']}",
        f"{setting['model']}, batch {setting['batch_size']} of {setting['data']}'s shape, seed {setting['seed']};"
        f" medians (fastest-slowest) of {result['repeat']}, all taking turns",
        f"a training step: {result['step']}",
        f"this machine: {2e-9 * machine['float32']:.0f} GFLOP/s float32, {2e-9 * machine['bfloat16']:.0f} bfloat16"
        f" (matrix product), {1e-9 * machine['bandwidth']:.1f} GB/s (copy)",
    ]
    for record in result["masks"]:
        lines += ["", *_of_mask(record)]
    return "\n".join(lines)


def _of_mask(record: dict[str, Any]) -> list[str]:
    contestants = record["contestants"]
    data = f", found on {record['found_on']}" if record["found_on"] else ""
    lines = [
        f"{record['name']}: {record['method']}{data}, density {record['density']:.4g},"
        f" {record['kept']:,} of {record['total']:,} weights",
        "",
        Table(_COLUMNS, [_row(contestants, key) for key in contestants], left=2, notes=_LEGEND).text(),
        "",
    ]
    for key, line in contestants.items():
        lines.append(f"{key}: " + (f"not installed: {line['missing']}" if "missing" in line else line["about"]))
    return [*lines, _roofline(record)]


def _row(contestants: dict[str, Any], key: str) -> list[str]:
    line = contestants[key]
    if "missing" in line:
        return [key, line["title"], *["-"] * (len(_COLUMNS) - 2)]
    cells = [key, line["title"]]
    for what in ("train_ms", "infer_ms"):
        times = line[what]
        cells += [f"{statistics.median(times):.1f} ({min(times):.1f}-{max(times):.1f})"]
        cells += [f"{ratio_to_ours(contestants, key, what):.2f}"]
    memory = line.get("memory")
    cells += [f"{sum(line['state'].values()) / 1e6:.2f}", f"{memory['peak'] / 1e6:.0f}" if memory else "-"]
    return [*cells, f"{line['difference']:.0e}"]


def _roofline(record: dict[str, Any]) -> str:
    lines = []
    for key, what in (("ours", "kept"), ("ours16", "kept16")):
        kept, ours = record["work"][what], statistics.median(record["contestants"][key]["train_ms"])
        lines.append(
            f"roofline: {1e-9 * kept['macs']:.2f} G kept multiply-adds and an estimated {1e-9 * kept['bytes']:.2f} GB"
            f" per training step: at least {kept['least_ms']:.1f} ms; {key} takes {ours / kept['least_ms']:.1f} times"
            " that"
        )
    return "\n".join(lines)


def ratio_to_ours(lines: Mapping[str, Mapping[str, Any]], key: str, what: str) -> float:
    """A contestant's median time as a multiple of ours; the faster of ours counts."""
    ours = min(statistics.median(lines[name][what]) for name in OURS if name in lines)
    return statistics.median(lines[key][what]) / ours
