"""Advice against what training showed: how well a look at initialization predicted accuracy."""

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skeletal.core.extras import extra
from skeletal.core.table import Table
from skeletal.harness.runs.experiment import identity
from skeletal.harness.store.folders import RunFolder
from skeletal.study.beyond.advise import Advice, Line, Recommendation

TOLERANCE = 3.0
"""a skeleton this many points of test accuracy below the dense network counts as degraded"""
MEASURES = ("saliency", "worth", "gradient_norm", "effective")

Accuracies = dict[str, dict[float, list[float]]]
"""top-1 in percent, by method and density, one for each seed; the dense network's is "dense" at 1.0"""


@dataclass(frozen=True)
class Verdict:
    """One method's advice, and what came of it."""

    advised: float | None
    """density"""
    sound: float | None
    """the lowest density that trained to within `TOLERANCE` of the dense network, as did all above it"""
    steps: int | None
    """how many of the trained densities the advice lies too high (careful), or, below 0, too low; None where nothing
    was advised or nothing was sound"""
    accuracy: float | None
    """mean, at the advised density"""


@dataclass(frozen=True)
class Hindsight:
    """All methods' verdicts, and how measures at initialization rank with accuracy."""

    dense: float
    """mean accuracy of the dense network"""
    accuracies: Accuracies
    verdicts: dict[str, Verdict]
    correlations: dict[str, float]
    """Spearman's, of each measure with mean accuracy, over all methods and densities that were trained"""

    def table(self, *, markdown: bool = False) -> str:
        """The verdicts, the accuracies they rest on, and the correlations."""
        columns = ("method", "advised", f"lowest within {TOLERANCE:g} points of dense", "too high by", "accuracy there")
        rows = []
        for method, verdict in self.verdicts.items():
            steps = "-" if verdict.steps is None else f"{verdict.steps:+d} densities"
            accuracy = "-" if verdict.accuracy is None else f"{verdict.accuracy:.2f}"
            rows.append([method, _density(verdict.advised), _density(verdict.sound), steps, accuracy])
        densities = sorted({d for method in self.verdicts for d in self.accuracies[method]}, reverse=True)
        by_density = []
        for density in densities:
            cells = [_spread(self.accuracies[method].get(density, [])) for method in self.verdicts]
            by_density.append([f"{density:g}", *cells])
        named = "; ".join(f"{name} {value:+.2f}" for name, value in self.correlations.items())
        return "\n\n".join([
            Table(columns, rows).shown(markdown=markdown),
            f"Test accuracy (%), dense {self.dense:.2f}:",
            Table(["density", *self.verdicts], by_density).shown(markdown=markdown),
            f"Rank correlation with accuracy: {named}",
        ])  # fmt: skip


def hindsight(
    advice: Advice, found: Mapping[str, Sequence[Line]], advised: Mapping[str, Recommendation], trained: Path
) -> Hindsight:
    """Compare advice with the accuracies of finished runs.

    Args:
        advice: whose settings the runs must share, except densities and seeds.
        found: its lines by method.
        advised: its recommendations by method.
        trained: a folder of run folders; others in it are ignored.

    Raises:
        ValueError: there are no such runs, none of the dense network, or they were trained by different recipes.

    """
    accuracies = _accuracies(advice, trained)
    dense = statistics.fmean(accuracies["dense"][1.0])
    verdicts = {
        method: judge(advised[method].density, {d: statistics.fmean(a) for d, a in accuracies[method].items()}, dense)
        for method in found
        if accuracies.get(method)
    }
    pairs = [
        (line, statistics.fmean(accuracies[method][line.density]))
        for method in verdicts
        for line in found[method]
        if line.density in accuracies[method]
    ]
    return Hindsight(dense, accuracies, verdicts, rank_correlations(pairs))


def judge(advised: float | None, means: Mapping[float, float], dense: float) -> Verdict:
    """Compare an advised density with mean accuracies by density, and that of the dense network."""
    falling = sorted(means, reverse=True)
    sound = list(itertools.takewhile(lambda density: means[density] >= dense - TOLERANCE, falling))
    lowest = sound[-1] if sound else None
    steps = None
    if advised is not None and lowest is not None:
        steps = sum(lowest <= d < advised for d in falling) - sum(advised <= d < lowest for d in falling)
    return Verdict(advised, lowest, steps, None if advised is None else means.get(advised))


def rank_correlations(pairs: Sequence[tuple[Line, float]]) -> dict[str, float]:
    """Spearman's correlation of each of `MEASURES` with accuracy; without those that are the same everywhere."""
    with extra("run"):
        from scipy.stats import spearmanr

    accuracy = [value for _, value in pairs]
    found = {}
    for name in MEASURES:
        values = [getattr(line, name) for line, _ in pairs]
        if len(set(values)) > 1 and len(set(accuracy)) > 1:
            found[name] = float(spearmanr(values, accuracy).statistic)
    return found


def _accuracies(advice: Advice, trained: Path) -> Accuracies:
    found: Accuracies = {}
    recipes = set()
    for file in sorted(trained.glob("*/config.json")):
        folder = RunFolder.at(file.parent)
        if not folder.finished or not (place := _place(advice, folder.config)):
            continue
        result = folder.result()
        if "test" in result:
            recipes.add(tuple((key, folder.config[key]) for key in ("epochs", "lr", "batch_size", "weight_decay")))
            method, density = place
            found.setdefault(method, {}).setdefault(density, []).append(result["test"]["top1"])
    if len(recipes) > 1:
        told = " and ".join(", ".join(f"{key} {value}" for key, value in recipe) for recipe in sorted(recipes))
        raise ValueError(f"the runs in {trained} were trained by different recipes ({told}): compare one at a time")
    if "dense" not in found or len(found) < 2:
        missing = "of the dense network" if len(found) > 1 else "of these methods and of the dense network"
        raise ValueError(
            f"{trained} has no finished runs {missing} for {advice.setup.model} on {advice.setup.data} with these"
            " settings: train some with `skeletal run`"
        )
    return found


def _place(advice: Advice, config: Mapping[str, Any]) -> tuple[str, float] | None:
    """Method and density of a run of the advice's network, data and settings."""
    if (config.get("model"), config.get("data")) != (advice.setup.model, advice.setup.data):
        return None
    if config.get("method") == "dense":
        return "dense", 1.0
    for pruning in advice.prunings:
        wanted = {key: value for key, value in identity(pruning).items() if key != "density"}
        if wanted.items() <= {key: config.get(key) for key in wanted}.items() and config.get("density"):
            return pruning.method, config["density"]
    return None


def _density(density: float | None) -> str:
    return "none" if density is None else f"{density:g}"


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    return f"{statistics.fmean(values):.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")
