"""Advice against what training showed: how well a look at initialization predicted accuracy."""

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from skeletal.core.extras import extra
from skeletal.core.table import Table
from skeletal.harness.comparison.seeds import by_seed
from skeletal.harness.config import Pruning, with_later
from skeletal.harness.runs.experiment import identity
from skeletal.harness.store.search import runs_below
from skeletal.study.beyond.advise import Advice, Line, Recommendation

TOLERANCE = 3.0
"""a skeleton this many points of test accuracy below the dense network counts as degraded"""
MEASURES = ("saliency", "worth", "gradient_norm", "effective")

_RECIPE = ("epochs", "batch_size", "lr", "momentum", "weight_decay", "milestones", "decay", "bf16")
"""settings of a training that change what a mask comes to"""

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
        trained: a folder that contains run folders; others in it, and what else lies there, are ignored.

    Raises:
        FileNotFoundError: there is no such folder.
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
    runs: dict[str, dict[float, list[tuple[int, float]]]] = {}
    recipes = set()
    for folder in runs_below(trained):
        config = with_later(folder.config)
        if not folder.finished or not (place := _place(advice, config)):
            continue
        result = folder.result()
        if "test" in result:
            recipes.add(tuple(str(config.get(name)) for name in _RECIPE))
            method, density = place
            runs.setdefault(method, {}).setdefault(density, []).append((config["seed"], result["test"]["top1"]))
    if len(recipes) > 1:
        differ = [at for at in range(len(_RECIPE)) if len({recipe[at] for recipe in recipes}) > 1]
        each = (", ".join(f"{_RECIPE[at]} {recipe[at]}" for at in differ) for recipe in sorted(recipes))
        told = " and ".join(each)
        raise ValueError(f"the runs in {trained} were trained by different recipes ({told}): compare one at a time")
    found = {method: {at: by_seed(each) for at, each in densities.items()} for method, densities in runs.items()}
    if "dense" not in found or len(found) < 2:
        missing = "of the dense network" if len(found) > 1 else "of these methods and of the dense network"
        raise ValueError(
            f"{trained} has no finished runs {missing} for {advice.setup.model} on {advice.setup.data} with these"
            " settings: train some with `skeletal run`"
        )
    return found


def _place(advice: Advice, config: Mapping[str, Any]) -> tuple[str, float] | None:
    """Name and density of a run of the advice's network, data and settings, if its mask stayed; `config` is whole."""
    setup = with_later(identity(advice.setup))
    same_data = all(config.get(name) == setup[name] for name in ("model", "data", "image_size", "validation"))
    if config["update"] != "none" or not same_data:
        return None
    if config.get("method") == "dense":
        return "dense", 1.0
    for name, pruning in zip(advice.names, advice.prunings, strict=True):
        wanted = with_later(identity(pruning))
        same = all(
            config.get(f.name) == wanted.get(f.name) for f in fields(Pruning) if f.name in wanted.keys() - {"density"}
        )
        if same and config.get("density"):
            return name, config["density"]
    return None


def _density(density: float | None) -> str:
    return "none" if density is None else f"{density:g}"


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    return f"{statistics.fmean(values):.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")
