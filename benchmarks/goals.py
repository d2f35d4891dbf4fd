"""The project's goals beside what `skeletal bench` has measured.

skeletal bench --model vgg19-cifar --density 0.01 --density 0.001 --baselines a,b,d --out bench.json
python benchmarks/goals.py bench.json
"""

import argparse
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from skeletal.harness.bench.table import ratio_to_ours

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


_NAMES = {"train_ms": "training time", "infer_ms": "inference time", "state": "weights, gradients and momentum"}


def in_words(goal: Mapping[str, Any]) -> str:
    """One of `goals`, as a line."""
    if goal["what"] == "state":
        text = f"{100 * goal['found']:.2f}% of {goal['against']}'s, goal at most {100 * goal['goal']:.2f}%"
    else:
        text = f"{goal['against']} takes {goal['found']:.1f} times as long, goal {goal['goal']:g}"
    return f"{_NAMES[goal['what']]}: {text}: {'met' if goal['met'] else 'missed'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path, help="what `skeletal bench --out` wrote")
    result = json.loads(parser.parse_args().result.read_text())
    for record in result["masks"]:
        print(f"{result['setting']['model']}, {record['name']}, density {record['density']:.4g}")
        for goal in goals(result["setting"]["model"], record):
            print("  " + in_words(goal))


if __name__ == "__main__":
    main()
