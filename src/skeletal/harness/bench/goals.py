"""What the project has set itself to reach, beside what was measured."""

import math
import statistics
from collections.abc import Mapping
from typing import Any

from skeletal.harness.bench.contestants import OURS

# How many times longer than ours others take, at least, for a batch of 128.
_TRAINING: dict[tuple[str, float], dict[str, float]] = {
    ("vgg19-cifar", 0.01): {"a": 5, "b": 3, "d": 3},
    ("vgg19-cifar", 0.001): {"a": 12, "b": 7, "d": 4},
    ("resnet50-cifar", 0.01): {"a": 8, "b": 2.5, "d": 6},
    ("resnet50-cifar", 0.001): {"a": 25, "b": 8, "d": 10},
}
_INFERENCE: dict[float, dict[str, float]] = {0.01: {"a": 5}, 0.001: {"a": 15}}


def goals(model: str, record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Goals that apply to a record of `bench`: what, against whom, the goal, what was found, whether it is met."""
    density, lines = record["density"], record["contestants"]
    found = []
    training = {key[1]: goal for key, goal in _TRAINING.items() if key[0] == model}
    known_model = any(key[0] == model for key in _TRAINING)
    for what, table in (("train_ms", training), ("infer_ms", _INFERENCE if known_model else {})):
        for at, others in table.items():
            if not math.isclose(at, density, rel_tol=0.02):
                continue
            for key, goal in others.items():
                if what in lines.get(key, {}):
                    ratio = ratio_to_ours(lines, key, what)
                    found.append({"what": what, "against": key, "goal": goal, "found": ratio, "met": ratio >= goal})
    if "state" in lines.get("a", {}):
        share = sum(lines["ours"]["state"].values()) / sum(lines["a"]["state"].values())
        most = 3 * density + 0.01
        found.append({"what": "state", "against": "a", "goal": most, "found": share, "met": share <= most})
    return found


def ratio_to_ours(lines: Mapping[str, Mapping[str, Any]], key: str, what: str) -> float:
    """How many times ours a contestant's median time is; of ours, the faster counts."""
    ours = min(statistics.median(lines[name][what]) for name in OURS if name in lines)
    return statistics.median(lines[key][what]) / ours
