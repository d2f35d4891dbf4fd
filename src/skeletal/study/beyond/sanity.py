"""What does a method choose? Masks with part of the choice undone, measured and trained beside the original.

If a mask trains as well with its weights drawn anew within each layer, or on weights it was not found on, then the
method has chosen numbers of weights per layer, not weights (Frankle et al. 2021, "Pruning Neural Networks at
Initialization: Why Are We Missing the Mark?"; Su et al. 2020, "Sanity-Checking Pruning Methods").
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import nn

from skeletal.core.choices import require
from skeletal.core.extras import extra
from skeletal.core.masks.compare import layer_agreement, overlap
from skeletal.core.masks.mask import Mask
from skeletal.core.model.tensors import Tensors
from skeletal.core.pruning.methods import METHODS
from skeletal.core.pruning.ranking import Ranking
from skeletal.core.pruning.schedules import SCHEDULES, Schedule
from skeletal.core.table import Table
from skeletal.harness.config import Pruning, Setup, Training
from skeletal.harness.data import Data
from skeletal.harness.runs import experiment, finding
from skeletal.harness.runs.measure import measure_masked, measure_masked_folder
from skeletal.harness.store.folders import RunFolder
from skeletal.study.paper.jobs import Job, SearchJob

ORIGINAL, OTHER_SEED, DENSE = "as found", "found on other weights", "dense"
_OTHER_DATA = 1000  # added to the seed that draws the batches a mask is found on

ABOUT = {
    ORIGINAL: "the method's mask on the weights it was found on",
    "shuffled": "as many weights in each layer, at positions drawn anew",
    "other weights": "the same mask on other initial weights, those of the next seed",
    "SNIP's positions": "as many weights in each layer, those that SNIP ranks first there",
    "SNIP's layers": "as many weights in each layer as SNIP keeps there, those the method ranks first",
    "SNIP": "SNIP's mask, found on as many batches in all",
    "random": "as many weights in all, at random",
    "other data": "found on other batches",
    "one weight fewer": "found with one weight fewer kept at every step but the last",
    OTHER_SEED: "the method's mask of the next seed, on its own weights, compared with this seed's mask",
    DENSE: "all weights",
}


def one_fewer(schedule: Schedule) -> Schedule:
    """Keep one weight fewer than a schedule at every step but the last."""

    def one_weight_fewer(total: int, kept: int, steps: int) -> list[int]:
        *earlier, last = schedule(total, kept, steps)
        return [max(count - 1, last) for count in earlier] + [last]

    return one_weight_fewer


def _find(
    model: nn.Module, data: Data, setup: Setup, pruning: Pruning, schedule: Schedule | None = None
) -> tuple[Mask, Ranking]:
    ranking = Ranking(pruning.method)
    mask = finding.find_mask(model, data, setup, pruning, progress=False, schedule=schedule, on_step=ranking)
    return mask, ranking


def _ranks_all(method: str) -> bool:
    """Whether a method's run ranks all weights; PHEW or NPB say which they choose, and nothing of the others."""
    row = METHODS[method]
    return not (row.by_count and row.one_shot)


def masks(setup: Setup, data: Data, pruning: Pruning, shuffles: int) -> dict[str, Mask]:
    """All masks of one seed that a check needs, by name."""
    model = finding.create_model(setup, data)
    found, ranking = _find(model, data, setup, pruning)
    once = replace(pruning, steps=1, batches_per_step=(pruning.steps or 1) * (pruning.batches_per_step or 1))
    snip, snips = _find(model, data, setup, replace(once, method="snip"))
    random, _ = _find(model, data, setup, replace(once, method="random"))
    elsewhere, _ = _find(model, data, replace(setup, seed=setup.seed + _OTHER_DATA), pruning)
    fewer, _ = _find(model, data, setup, pruning, one_fewer(SCHEDULES[pruning.schedule]))

    def named(name: str, tensors: Mask | Tensors) -> Mask:
        # Without the seed it was found with: training on other weights than those is what some checks are about.
        metadata = {key: value for key, value in found.metadata.items() if key not in ("seed", "connected")}
        return Mask(tensors, metadata | {"method": name.replace(" ", "-").replace("'", "")})

    ranked = _ranks_all(pruning.method)
    layers = {"SNIP's layers": named("snips-layers", ranking.keep_within_layers(snip))} if ranked else {}
    return {
        ORIGINAL: named(pruning.method, found),
        **{f"shuffled {i}": named(f"{pruning.method}-shuffled", found.shuffled(i)) for i in range(1, shuffles + 1)},
        "SNIP's positions": named("snips-positions", snips.keep_within_layers(found)),
        **layers,
        "SNIP": named("snip", snip),
        "random": named("random", random),
        "other data": named(f"{pruning.method}-other-data", elsewhere),
        "one weight fewer": named(f"{pruning.method}-one-fewer", fewer),
    }


@dataclass(frozen=True)
class MasksJob(SearchJob):
    """Find the masks of one seed. The result tells overlap and layer agreement of each with the original."""

    shuffles: int = 3

    def place(self, root: Path) -> tuple[Path, str, dict[str, Any]]:
        """See `SearchJob`."""
        config = experiment.identity(self.setup, self.pruning) | {"kind": "sanity", "shuffles": self.shuffles}
        name = experiment.run_name(self.setup, self.pruning.method, f"{self.pruning.density:g}", "masks")
        return root, name, config

    def search(self, root: Path, begin: Callable[[Data], RunFolder]) -> dict[str, Any]:
        """See `SearchJob`."""
        data = finding.load_data(self.setup)
        found = masks(self.setup, data, self.pruning, self.shuffles)
        begin(data)
        for name, mask in found.items():
            mask.save(self.file(root, name))
        return {name: _compared(mask, found[ORIGINAL]) for name, mask in found.items()}


def _compared(mask: Mask, original: Mask) -> dict[str, float]:
    return {"overlap": overlap(mask, original), "layer_agreement": layer_agreement(mask, original)}


@lru_cache(maxsize=1024)  # a mask file is read once, not at every look at what is finished
def _folder(setup: Setup, training: Training | None, mask: Path | None, root: Path) -> RunFolder:
    if training is not None:
        return experiment.masked_folder(setup, training, mask, root=root)
    assert mask is not None, "there is no mask to measure"
    return measure_masked_folder(setup, mask, root=root)


@dataclass(frozen=True)
class MaskedJob(Job):
    """Train, or measure if there is no training, with the mask in a file; None trains the dense network."""

    mask: Path | None = None

    def folder(self, root: Path) -> RunFolder:
        """See `Job`."""
        return _folder(self.setup, self.training, self.mask, root)

    def run(self, root: Path) -> dict[str, Any]:
        """See `Job`."""
        if self.training is not None:
            return experiment.train_masked(self.setup, self.training, self.mask, root=root, progress=False)[1]
        assert self.mask is not None, "there is no mask to measure"
        return measure_masked(self.setup, self.mask, root=root)[1]


@dataclass(frozen=True)
class SanityChecks:
    """The sanity checks of one method on one network: which runs they are, and what comes of them.

    Args:
        setup: its seed is ignored.
        pruning: resolved; the method is an iterative one, or there is little to check.
        training: resolved.
        seeds: at least two, each with its own weights, batches and masks.
        shuffles: of each seed's mask.

    """

    setup: Setup
    pruning: Pruning
    training: Training
    seeds: tuple[int, ...] = (0, 1, 2)
    shuffles: int = 3

    def __post_init__(self) -> None:
        require("method", self.pruning.method, METHODS)
        if self.pruning.pattern is not None:
            raise ValueError(f"sanity checks shuffle single weights: leave pattern={self.pruning.pattern!r} out")
        if self.pruning.best_of > 1:
            raise ValueError("sanity checks look at how one mask was found: leave --best-of out")
        if len(set(self.seeds)) < 2:
            raise ValueError(f"seeds are {self.seeds}: a mask on other weights needs at least two different ones")
        if self.shuffles < 1:
            raise ValueError(f"shuffles is {self.shuffles}; it has to be at least 1")

    def mask_jobs(self) -> list[MasksJob]:
        """What comes first: the masks of each seed."""
        return [self._masks(seed) for seed in self.seeds]

    def jobs(self, root: Path) -> list[MaskedJob]:
        """Every mask measured, then every mask trained; needs the masks to be there."""
        runs = list(dict.fromkeys((weights, mask) for _, _, weights, mask in self._checks(root)))
        measured = [self._run(weights, mask, None) for weights, mask in runs if mask is not None]
        return measured + [self._run(weights, mask, self.training) for weights, mask in runs]

    def results(self, root: Path) -> list[dict[str, Any]]:
        """What has been found, one row per check and seed; without those whose runs are not finished.

        `saliency` is FORCE's (Eq. 6), as a fraction of that of the method's own mask on the same weights; `overlap` and
        `layer_agreement` are with the seed's own mask.
        """
        rows = []
        for name, seed, weights, mask in self._checks(root):
            trained = self._run(weights, mask, self.training).folder(root)
            if trained.finished:
                row = {"check": name.rstrip(" 0123456789"), "name": name, "seed": seed, "weights": weights}
                row |= {"accuracy": trained.result()["test"]["top1"], "run": trained.path.name}
                rows.append(row if mask is None else row | self._measured(root, name, seed, weights, mask))
        return rows + self._other_seeds(root, rows)

    def _masks(self, seed: int) -> MasksJob:
        return MasksJob(replace(self.setup, seed=seed), self.pruning, None, shuffles=self.shuffles)

    def _run(self, weights: int, mask: Path | None, training: Training | None) -> MaskedJob:
        return MaskedJob(replace(self.setup, seed=weights), self.pruning, training, mask=mask)

    def _following(self) -> list[tuple[int, int]]:
        """Each seed with the next, the last with the first."""
        return list(zip(self.seeds, self.seeds[1:] + self.seeds[:1], strict=True))

    def _checks(self, root: Path) -> list[tuple[str, int, int, Path | None]]:
        """Name, seed it belongs to, seed of the weights, mask."""
        shuffled = [f"shuffled {i}" for i in range(1, self.shuffles + 1)]
        names = [ORIGINAL, *shuffled, "SNIP's positions", "SNIP", "random", "other data", "one weight fewer"]
        if _ranks_all(self.pruning.method):
            names.insert(2 + self.shuffles, "SNIP's layers")
        found: list[tuple[str, int, int, Path | None]] = []
        for seed, following in self._following():
            found += [(name, seed, seed, self._masks(seed).file(root, name)) for name in names]
            found += [("other weights", seed, following, self._original(root, seed)), (DENSE, seed, seed, None)]
        return found

    def _original(self, root: Path, seed: int) -> Path:
        return self._masks(seed).file(root, ORIGINAL)

    def _measured(self, root: Path, name: str, seed: int, weights: int, mask: Path) -> dict[str, Any]:
        at = self._run(weights, mask, None).folder(root).result()
        own = self._run(weights, self._original(root, weights), None).folder(root).result()
        found = {key: at[key] for key in ("effective_density", "connected", "density", "gradient_norm")}
        found["saliency"] = at["force_saliency"] / own["force_saliency"] if own["force_saliency"] else 0.0
        return found | self._masks(seed).folder(root).result()[ORIGINAL if name == "other weights" else name]

    def _other_seeds(self, root: Path, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The next seed's own mask and run, compared with this seed's mask."""
        own = {row["seed"]: row for row in rows if row["check"] == ORIGINAL}
        found = []
        for seed, following in self._following():
            if following in own:
                here, there = (Mask.load(self._original(root, of)) for of in (seed, following))
                told = {"check": OTHER_SEED, "name": OTHER_SEED, "seed": seed, "weights": following}
                found.append(own[following] | told | _compared(there, here))
        return found


def _spread(values: Sequence[float], spec: str) -> str:
    if not values:
        return "-"
    deviation = f" ± {statistics.stdev(values):{spec}}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):{spec}}{deviation}"


_LEGEND = (
    "overlap, layers: with the mask as found, weight by weight (Jaccard) and by the layers' densities; 1 is the same",
    "saliency: FORCE's, over that of the mask as found; effective / kept: share of the kept weights on a path",
    "path: masks that lead from input to output, of all; accuracy: on the test set",
)


def table(rows: Sequence[dict[str, Any]], *, markdown: bool = False) -> str:
    """Mean and standard deviation of each check over its runs, one line per check."""
    columns = ("check", "overlap", "layers", "saliency", "effective / kept", "path", "accuracy (%)", "runs")
    lines = []
    for check in ABOUT:
        mine = [row for row in rows if row["check"] == check]
        if not mine:
            continue
        masked = [row for row in mine if "overlap" in row]
        lines.append(
            [
                check,
                _spread([row["overlap"] for row in masked], ".2f"),
                _spread([row["layer_agreement"] for row in masked], ".2f"),
                _spread([row["saliency"] for row in masked], ".3f"),
                _spread([row["effective_density"] / row["density"] for row in masked], ".2f"),
                f"{sum(row['connected'] is not False for row in masked)}/{len(masked)}" if masked else "-",
                _spread([row["accuracy"] for row in mine], ".2f"),
                str(len(mine)),
            ]
        )
    return Table(columns, lines, notes=_LEGEND).shown(markdown=markdown)


def difference(rows: Sequence[dict[str, Any]], check: str) -> tuple[float, float] | None:
    """How many points of accuracy a check costs: the mean over seeds, and half of its 95% confidence interval.

    Original and check are compared on the same weights, and several shuffles of a seed count as one (Student's t). None
    where fewer than two seeds have finished.
    """
    with extra("run"):
        from scipy.stats import t

    own = {row["weights"]: row["accuracy"] for row in rows if row["check"] == ORIGINAL}
    by_weights: dict[int, list[float]] = {}
    for row in rows:
        if row["check"] == check and row["weights"] in own:
            by_weights.setdefault(row["weights"], []).append(own[row["weights"]] - row["accuracy"])
    costs = [statistics.fmean(cost) for cost in by_weights.values()]
    if len(costs) < 2:
        return None
    error = statistics.stdev(costs) / len(costs) ** 0.5
    return statistics.fmean(costs), float(t.ppf(0.975, len(costs) - 1)) * error


def answer(rows: Sequence[dict[str, Any]]) -> str:
    """What each check costs, one line each, and whether that can be told from nothing."""
    lines = []
    for check in ("shuffled", "other weights", "SNIP's positions", "SNIP's layers", "SNIP", "random"):
        found = difference(rows, check)
        if found is not None:
            cost, half = found
            word = "not clear of 0" if abs(cost) <= half else "costs" if cost > 0 else "gains"
            lines.append(f"{check}: {word}, {0 - cost:+.2f} ± {half:.2f} points of accuracy (95% confidence)")
    return "\n".join(lines)
