"""Iterative magnitude pruning with rewinding: train, prune the smallest weights, go back, and train what is left.

Frankle et al. 2020, "Linear Mode Connectivity and the Lottery Ticket Hypothesis", Algorithm 2: a dense network is
trained to W_k; then, again and again, m ⊙ W_k is trained to the end and the smallest weights of the result leave m. A
round is ordinary training that resumes from the dense one's checkpoint at epoch k, pruned: weights, batch norm's
statistics, momentum, learning rate, the order of the examples and random states are those of that moment, to the bit.
"""

import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from skeletal.core.diagnosis.connectivity import reaches_output
from skeletal.core.masks.mask import Mask
from skeletal.core.model.distributed import on_first
from skeletal.core.model.preserve import preserve_model
from skeletal.core.model.state.attributes import Attributes
from skeletal.core.progress import say
from skeletal.core.pruning.keep_top import keep_top
from skeletal.core.pruning.prune import prune
from skeletal.core.pruning.schedules import SCHEDULES, visit
from skeletal.harness.config import IMP, Pruning
from skeletal.harness.ledger import Cost, Ledger
from skeletal.harness.store import statefile
from skeletal.harness.store.folders import MASK, RunFolder
from skeletal.harness.store.weightsfile import load_weights
from skeletal.harness.training.task import Task
from skeletal.harness.training.train import train

REWIND_AT = 2000 / 63_000
"""of the training: iteration 2,000 of 63,000, for the paper's ResNet-20 on CIFAR-10"""


def rewind_epoch(pruning: Pruning, epochs: int) -> int:
    """The epoch k to go back to: the one asked for, or the paper's fraction of the training, at least 1.

    Raises:
        ValueError: there is nothing to train after it.

    """
    asked = pruning.rewind_epochs
    k = max(1, round(REWIND_AT * epochs)) if asked is None else asked
    if not k < epochs:
        raise ValueError(f"rewinding to epoch {k} leaves nothing of {epochs} epochs: choose a smaller --rewind-epochs")
    return k


def last_round(task: Task, pruning: Pruning, *, progress: bool) -> Task:
    """Train all rounds but the last, and prepare the last one in the run's own folder.

    Finished rounds are not repeated, and an interrupted one resumes.

    Args:
        task: dense, at the initialization, with the run's folder, which has been made.
        pruning: its density, steps (rounds), schedule and epoch of rewinding.
        progress: show bars on stderr.

    Returns:
        The task of the last round, with its mask; its folder holds the checkpoint to resume from.

    """
    folder, model = task.folder, task.model
    assert folder is not None and pruning.density is not None, "a run of several trainings needs a folder"
    k = rewind_epoch(pruning, task.training.epochs or 0)
    if (folder.path / MASK).exists() and (k == 0 or statefile.path_in(folder.path).exists()):
        return replace(task, mask=Mask.load(folder.path / MASK))
    mask = prune(model, density=1.0, method="random", seed=task.seed)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    counts = visit(SCHEDULES[pruning.schedule], mask.total, round(pruning.density * mask.total), pruning.steps or 1)
    seconds, rewound = 0.0, None
    cost: Cost | None = Cost()
    for number, count in enumerate(counts):
        place = RunFolder.open(folder.path / "rounds", f"{number:02}", {"round": number, "kept": mask.kept})
        result = _trained(replace(task, folder=place, mask=mask if number else None), start, rewound, k, progress)
        seconds += result["seconds"]
        trained = Ledger.read(result.get("cost")).training
        cost = None if cost is None or trained is None else cost + trained
        on_first(lambda place=place: shutil.rmtree(place.path / "checkpoint", ignore_errors=True))  # it has ended
        rewound = place if number == 0 else rewound
        say(f"round {number + 1} of {len(counts) + 1} is trained: {count:,} of {mask.kept:,} weights stay")
        mask = _smallest_gone(mask, load_weights(place.path)[0], count, f"round {number + 1}")
    mask.metadata |= {
        "method": IMP, "score": "|θ| after training", "density": pruning.density, "steps": len(counts),
        "schedule": pruning.schedule, "rewind_epoch": k, "connected": _connected(model, mask, task),
        "prune_seconds": round(seconds, 3), "cost": None if cost is None else cost.record(),
    }  # fmt: skip
    on_first(partial(_go_back, folder, mask, rewound, k, model))
    model.load_state_dict(start)
    return replace(task, mask=mask)


def _trained(task: Task, start: Mapping[str, Tensor], rewound: RunFolder | None, k: int, progress: bool) -> dict:
    """The result of a round; the first one is dense, and leaves what the others go back to."""
    folder, mask = task.folder, task.mask
    assert folder is not None, "every round has a folder"

    def work() -> dict[str, Any]:
        if mask is not None:
            on_first(partial(_go_back, folder, mask, rewound, k, task.model))
        task.model.load_state_dict(start)
        attributes = Attributes(task.model)
        trained = train(
            task.model, task.data, task.training, mask=mask, folder=folder, seed=task.seed, device=str(task.device),
            resume_command=task.resume_command, progress=progress, keep_epoch=None if mask is not None else k,
        )  # fmt: skip
        attributes.restore(task.model)  # such as counters, with which every round begins anew
        return asdict(trained)

    return folder.once(work)


def _smallest_gone(mask: Mask, trained: Mapping[str, Tensor], count: int, where: str) -> Mask:
    """The `count` kept weights that are largest after training, over all layers together."""
    sizes = {name: trained[name].abs() for name in mask}
    kept, _ = keep_top(sizes, dict(mask), count, nested=True, on_collapse="keep", where=where)
    return Mask(kept, mask.metadata)


def _connected(model: nn.Module, mask: Mask, task: Task) -> bool | None:
    with preserve_model(model, training=False, seed=0):
        return reaches_output(model, dict(mask), (task.example().to(task.device), None))[0]


def _go_back(folder: RunFolder, mask: Mask, rewound: RunFolder | None, k: int, model: nn.Module) -> None:
    """Prepare a round's mask, and the checkpoint that it resumes from: the dense one at epoch k, pruned."""
    if not (folder.path / MASK).exists():
        mask.save(folder.path / MASK)
    if k == 0 or rewound is None or statefile.path_in(folder.path).exists():
        return  # the initialization needs no checkpoint; a round that was under way has its own
    state = statefile.load(rewound.path / statefile.KEPT)
    if state is None:
        raise FileNotFoundError(
            f"{rewound.path / statefile.KEPT} is missing, and every round rewinds to it: delete {rewound.path.parent}"
            " to start over"
        )
    folder.truncate_metrics(0)
    for row in rewound.metrics()[:k]:
        folder.append({name: value for name, value in row.items() if not name.startswith("macs_")})  # not taken again
    statefile.save(folder.path, pruned(state, mask, [name for name, _ in model.named_parameters()]))


def pruned(state: dict[str, Any], mask: Mask, parameters: list[str]) -> dict[str, Any]:
    """A dense training's checkpoint with a mask applied to its weights and momentum, for any engine to resume from.

    Args:
        state: as `statefile.load` gives it.
        mask: what to keep.
        parameters: names of the model's parameters, in their order.

    """
    entries = {parameters[number]: dict(kinds) for number, kinds in state["optimizer"]["state"].items()}
    model = dict(state["model"])
    for name, keep in mask.items():
        model[name] = model[name].masked_fill(~keep, 0)
        for kind, value in entries.get(name, {}).items():
            if isinstance(value, torch.Tensor) and value.shape == keep.shape:
                entries[name][kind] = value.masked_fill(~keep, 0)
    left = {key: value for key, value in state.items() if key not in ("format", "engine")}
    nothing = Ledger(training=Cost(), evaluation=Cost()).record()
    optimizer = state["optimizer"] | {"state": entries}
    new = {"settings": state["settings"] | {"mask": mask.digest}, "model": model, "optimizer": optimizer}
    return left | new | {"rewound": True, "seconds": 0.0, "cost": nothing}
