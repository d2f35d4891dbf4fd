"""Algorithm 1 of the paper, and the table of methods that are settings of it."""

import importlib
import operator
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from skeletal.core.choices import require
from skeletal.core.diagnosis.connectivity import reaches_output
from skeletal.core.errors import CollapsedError, CollapseWarning, NonFiniteError
from skeletal.core.masks.mask import Mask
from skeletal.core.masks.selection import gather, scatter, top
from skeletal.core.model.batches import Cycle, Loss
from skeletal.core.model.denormals import flush_denormals
from skeletal.core.model.distributed import agree, everyone, ranks, together
from skeletal.core.model.gradients import Derivatives
from skeletal.core.model.precision import PRECISIONS, autocast, prefers_channels_last
from skeletal.core.model.preserve import device_of, preserve_model, preserve_random_state
from skeletal.core.model.shards import is_sharded
from skeletal.core.model.tensors import Tensors, all_finite, flatten, unflatten, widen
from skeletal.core.model.weights import Selection, count_biases, left_out, prunable_weights, unwrap
from skeletal.core.pruning import scores
from skeletal.core.pruning.schedules import SCHEDULES, Schedule, visit
from skeletal.core.version import __version__


@dataclass(frozen=True)
class Method:
    """A row of the table: a method is a score, how often it is computed, and whether pruned weights may return."""

    score: scores.Score
    steps: int
    """the default number of steps T"""
    nested: bool = True
    """once pruned, stays pruned (Eq. 7)"""
    one_shot: bool = False
    """one step by definition"""
    needs_data: bool = True


METHODS: dict[str, Method] = {
    "random": Method(scores.noise, steps=1, one_shot=True, needs_data=False),
    "magnitude": Method(scores.magnitude, steps=1, one_shot=True, needs_data=False),
    "random-uniform": Method(scores.uniform_noise, steps=1, one_shot=True, needs_data=False),
    "random-erk": Method(scores.erk_noise, steps=1, one_shot=True, needs_data=False),
    "snip": Method(scores.connection_sensitivity, steps=1, one_shot=True),
    "grasp": Method(scores.gradient_preservation, steps=1, one_shot=True),
    "force": Method(scores.connection_sensitivity, steps=60),
    "force-regrow": Method(scores.regrowing_sensitivity, steps=60, nested=False),
    "grasp-it": Method(scores.gradient_norm, steps=60),
    "grasp-iterative": Method(scores.gradient_preservation, steps=60),
    "synflow": Method(scores.flow, steps=100),
}


@dataclass(frozen=True)
class Step:
    """What `on_step` sees after a step: the new mask, and what it was made of."""

    step: int
    """1 to steps"""
    steps: int
    kept: int
    density: float
    loss: float | None
    """mean loss before the step, at the previous mask; None for data-free methods"""
    mask: Tensors
    scores: Tensors


@together()  # an argument that is wrong on one rank stops all
def prune(
    model: nn.Module,
    batches: Iterable[Any] | None = None,
    *,
    density: float,
    method: str = "force",
    steps: int | None = None,
    batches_per_step: int = 1,
    schedule: str | Schedule = "exponential",
    loss: Loss | None = None,
    prunable: Selection = None,
    score: scores.Score | None = None,
    bn_mode: Literal["train", "eval"] = "train",
    average: Literal["signed", "absolute"] = "signed",
    precision: Literal["float32", "bfloat16"] = "float32",
    engine: Literal["dense", "sparse"] = "dense",
    micro_batch: int | None = None,
    recompute: bool = False,
    on_collapse: Literal["raise", "keep"] = "raise",
    seed: int = 0,
    on_step: Callable[[Step], None] | None = None,
) -> Mask:
    """Find the few weights of a network worth having, before training (paper, Algorithm 1).

    The model is left exactly as found: weights, buffers, gradients, mode, hooks and every global random state.
    `mask.attach(model)` makes it a skeleton.

    Under torchrun call it on every rank, with the same arguments and weights, and with each rank's own share of the
    batches: gradients are averaged over all ranks, each counting by its examples, and all find the same mask.

    Args:
        model: any module, on any device.
        batches: an iterable of `(inputs, targets)` or of dicts of the model's arguments. It is cycled, and
            never restarted between steps. Methods without data (random, magnitude) need none.
        density: fraction of prunable weights to keep, in (0, 1]; exactly `round(density * total)` are kept,
            ties going to the first position.
        method: a row of `skeletal.METHODS`.
        steps: T of Algorithm 1; by default the method's own.
        batches_per_step: batches whose gradients are averaged at each step. `snip` with many is SNIP-MB.
        schedule: "exponential" (Eq. 9), "linear" (Eq. 8), or a function `(total, kept, steps) -> counts`.
        loss: a function `(outputs, targets) -> scalar`, for dict batches `(outputs, batch) -> scalar`; by default
            cross-entropy, for dict batches the model's own `outputs.loss`.
        prunable: which weights; see `prunable_weights`.
        score: a function of a `Point` that takes the place of the method's own; higher = keep, and exactly
            0 means that no signal passes.
        bn_mode: mode of the whole model while it is scored.
        average: "signed" averages the batches' gradients, and scores take the absolute value after that, as in the
            paper's code; "absolute" averages each batch's absolute values. The same where there is one batch a step.
        precision: "bfloat16" runs the forward pass under autocast, in about half the time and, where activations are
            most of it, two thirds of the memory (docs/cost.md); weights, loss, gradients and scores stay float32. The
            mask differs, as it does with other data. Only for methods that score by the loss; others pay no heed to it.
        engine: "sparse" takes gradients on a compiled skeleton once few weights are left, and then costs what is left
            (nested methods, weights in float32 or float64, on a CPU; others, and networks torch.fx cannot trace, are
            scored densely, as `mask.metadata["why_dense"]` says). Each step's scores are the same to rounding, except
            that active dropout draws other numbers, and that scores of your own see gradients of 0 at pruned weights.
        micro_batch: run each batch in pieces of at most so many examples, for large images in little memory. The
            gradient is the whole batch's, each piece counting by its examples, where the loss is a mean over examples;
            but batch norm in mode "train" takes its statistics from a piece (docs/imagenet.md has the effect). Methods
            with second derivatives keep a step's batches in memory, unless `batches` has a method `starting_at(k)`
            that iterates from its k-th batch on.
        recompute: hold only the inputs of a network's repeated blocks and of pieces of long sequences for the backward
            pass, and run them again there: the same mask to the bit in less memory, for up to half as much time again
            (docs/cost.md).
        on_collapse: "raise" stops when fewer weights have a finite, non-zero score than are to be kept;
            "keep" fills up by position and records it in `mask.metadata["filled"]`.
        seed: seeds random scores, dropout and any loader that draws on the global random state.
        on_step: called after each step with a `Step`.

    Returns:
        The mask, with its making in `mask.metadata`.

    Raises:
        ValueError: density, steps, method, schedule or another option out of range; no prunable weights, or sharded;
            no batches; ranks that differ in arguments or weights; bfloat16 on a device that has no autocast; a sparse
            engine for a method that looks at pruned weights.
        TypeError: a batch or a loss of the wrong kind.
        NonFiniteError: NaN or infinity in weights, loss, gradients or scores.
        CollapsedError: see `on_collapse`; names step, density and empty layers.
        RuntimeError: another rank has failed; names the rank and its error. Or a part of the network writes to its own
            input, and `recompute` is asked for.

    Warns:
        CollapseWarning: the finished mask leaves no path from input to output; or layers are empty and there are
            no batches to look for one; or weights were filled in at the last step.

    """
    row = _row(method, score, steps)
    steps, batches_per_step, seed = (operator.index(n) for n in (steps or row.steps, batches_per_step, seed))
    density = float(density)
    model = unwrap(model)
    weights = prunable_weights(model, prunable)
    if sharded := [name for name, weight in weights.items() if is_sharded(weight)]:
        raise ValueError(f"{sharded[0]} is sharded already: prune first, then fully_shard, then attach the mask")
    total = sum(weight.numel() for weight in weights.values())
    kept = _kept(density, total)
    counts = visit(_schedule(schedule), total, kept, steps)
    steps = len(counts)
    require("bn_mode", bn_mode, ("train", "eval"))
    require("average", average, ("signed", "absolute"))
    require("precision", precision, PRECISIONS)
    require("on_collapse", on_collapse, ("raise", "keep"))
    autocast(precision, device_of(model))  # refuses a device without
    derived = _derivatives(engine, method, row)
    micro_batch = None if micro_batch is None else operator.index(micro_batch)
    for name, number in {"batches_per_step": batches_per_step, "micro_batch": micro_batch}.items():
        if number is not None and number < 1:
            raise ValueError(f"{name} is {number}; it has to be at least 1")
    if batches is None and row.needs_data:
        raise ValueError(f"method {method!r} needs batches: an iterable of (inputs, targets) or of dicts")

    filled: list[dict[str, int]] = []
    connected, why_unknown = None, "no batches were given"
    with preserve_model(model, training=bn_mode == "train", seed=seed), flush_denormals():
        settings = dict(method=method, counts=counts, batches_per_step=batches_per_step, bn_mode=bn_mode)
        settings |= dict(average=average, precision=precision, on_collapse=on_collapse, seed=seed)
        settings |= dict(prunable=list(weights), engine=engine, micro_batch=micro_batch, recompute=recompute)
        agree(settings, "call prune with the same arguments on every rank")
        agree(
            dict(model.named_parameters()),
            "create the model from the same seed on every rank, or broadcast it from one, as DDP does",
        )
        theta = {name: widen(weight.detach()) for name, weight in weights.items()}
        for name, weight in theta.items():
            if not all_finite(weight):
                raise NonFiniteError(f"{name} {tuple(weight.shape)} holds NaN or infinite weights")
        stream = None if batches is None else Cycle(batches)
        example = None if stream is None else stream.peek()
        channels_last = prefers_channels_last(model, precision)
        options = batches_per_step, loss, bn_mode, average, precision, channels_last, micro_batch, recompute
        derivatives = None if stream is None else derived(model, stream, *options)
        generator = torch.Generator().manual_seed(seed)
        mask = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in theta.items()}
        for step, count in enumerate(counts, 1):  # Algorithm 1
            if engine == "sparse" and derivatives is not None:
                derivatives.mask = mask
            point = scores.Point(theta, mask, count, derivatives, generator)
            try:
                scored = row.score(point)
            except NonFiniteError as error:
                raise NonFiniteError(f"at step {step} of {steps}: {error}") from error
            scores.check_scores(scored, theta)
            mask, missing = _select(scored, mask, count, row.nested, step, steps, on_collapse)
            if missing:
                filled.append({"step": step, "weights": missing})
            if on_step is not None:
                with preserve_random_state(model):
                    on_step(Step(step, steps, count, count / total, point.loss, mask, scored))
            del point, scored  # four times the weights, while the next step has the activations to hold
        if example is not None:
            connected, why_unknown = reaches_output(model, mask, example)
        connected, why_unknown = everyone((connected, why_unknown))[0]
        agree(mask, "a score of your own has to be the same function on every rank")

    found = Mask(
        mask,
        {
            "method": method,
            "score": getattr(row.score, "__name__", "custom"),
            "density": density,
            "steps": steps,
            "schedule": schedule if isinstance(schedule, str) else getattr(schedule, "__name__", "custom"),
            "batches_per_step": batches_per_step,
            "loss": "default" if loss is None else getattr(loss, "__name__", type(loss).__name__),
            "bn_mode": bn_mode,
            "average": average,
            "precision": precision,
            "engine": engine,
            "micro_batch": micro_batch,
            "recompute": recompute,
            "why_dense": getattr(derivatives, "why_dense", None),
            "ranks": ranks(),
            "seed": seed,
            "model": type(model).__name__,
            "biases": count_biases(model, weights),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "left_out": left_out(model, weights),
            "filled": filled,
            "connected": connected,
            "versions": {"skeletal": __version__, "torch": str(torch.__version__)},
        },
    )
    _warn_if_collapsed(found, why_unknown)
    return found


def _warn_if_collapsed(mask: Mask, why_unknown: str) -> None:
    made = f"at density {mask.density:.4g} with {mask.metadata['method']!r}"
    empty = ", ".join(mask.empty_layers)
    if mask.metadata["connected"] is False:
        message = (
            f"no path leads from input to output {made}: this skeleton cannot learn."
            f" Empty layers: {empty or 'none, but no path is left through them'}"
        )
    elif mask.metadata["connected"] is None and empty:
        message = f"layers are empty {made}: {empty}. Whether a path is left is not known ({why_unknown})"
    elif (filled := mask.metadata["filled"]) and filled[-1]["step"] == mask.metadata["steps"]:
        message = (
            f"{filled[-1]['weights']:,} of the {mask.kept:,} weights kept {made} carry no signal: filled by position"
        )
    else:
        return
    warnings.warn(message, CollapseWarning, stacklevel=4)  # past the decorator, at the caller of `prune`


def _select(
    scored: Tensors, mask: Tensors, count: int, nested: bool, step: int, steps: int, on_collapse: str
) -> tuple[Tensors, int]:
    """The next mask, and how many of its weights have no score and were only filled in."""
    for name, score in scored.items():
        if not all_finite(score):
            raise NonFiniteError(
                f"the score of {name} {tuple(score.shape)} holds NaN or infinity at step {step} of {steps}"
            )
    total = sum(score.numel() for score in scored.values())
    # What a nested method chooses from is what is left, and so its cost falls with every step.
    places = _places(mask) if nested else None
    flat = flatten(scored) if places is None else gather(scored, places)
    # With everything kept there is nothing to choose, and a weight without a score is no collapse.
    missing = max(count - int(flat.count_nonzero()), 0) if count < total else 0
    if missing and on_collapse == "raise":
        empty = [name for name, score in scored.items() if not (score[mask[name]] if nested else score).any()]
        raise CollapsedError(
            f"collapsed at step {step} of {steps}, density {count / total:.6g}: {count:,} weights are to be kept"
            f" but only {count - missing:,} have a finite, non-zero score."
            f" Layers without any: {', '.join(empty) or 'none'}."
            " Use more batches_per_step, another number of steps or a higher density,"
            " or on_collapse='keep' to fill up by position"
        )
    if missing or flat.min() < 0:
        # What has no score comes after everything that has one, even a negative one.
        flat.masked_fill_(flat == 0, torch.finfo(flat.dtype).min)
    chosen = top(flat, count)
    return unflatten(chosen, mask) if places is None else scatter(chosen, places, mask), missing


def _places(mask: Tensors) -> Tensors | None:
    """Where each layer's kept weights lie; None where nothing is pruned yet."""
    if all(keep.all() for keep in mask.values()):
        return None
    return {name: keep.flatten().nonzero().flatten() for name, keep in mask.items()}


def _row(method: str, score: scores.Score | None, steps: int | None) -> Method:
    require("method", method, tuple(METHODS))
    row = METHODS[method]
    if score is not None:
        row = replace(row, score=score, one_shot=False)
    if steps is not None and steps < 1:
        raise ValueError(f"steps is {steps}; it has to be at least 1")
    if row.one_shot and steps not in (None, 1):
        iterated = {"snip": "force", "grasp": "grasp-iterative"}.get(method)
        hint = f" ({method} in several steps is method={iterated!r})" if iterated else ""
        raise ValueError(f"{method!r} prunes in one step, not {steps}{hint}")
    return row


def _derivatives(engine: str, method: str, row: Method) -> Any:
    """The class that takes derivatives: by name where it is the engine's, which core does not know."""
    require("engine", engine, ("dense", "sparse"))
    if engine == "dense":
        return Derivatives
    if not row.nested:
        raise ValueError(
            f"{method!r} scores pruned weights, too, whose gradients a skeleton does not have: use engine='dense'"
        )
    try:
        return importlib.import_module("skeletal.engine.scoring").SkeletonDerivatives
    except ImportError as error:
        raise ImportError(
            f"engine='sparse' needs numba, which does not load here ({error}): use engine='dense'"
        ) from error


def _kept(density: float, total: int) -> int:
    if not 0 < density <= 1:
        raise ValueError(f"density is {density}; it is the fraction of weights kept, above 0 and at most 1")
    kept = round(density * total)
    if kept == 0:
        raise ValueError(
            f"density {density} keeps none of {total:,} prunable weights; at least {0.5 / total:.3g} keeps one"
        )
    return kept


def _schedule(schedule: str | Schedule) -> Schedule:
    if callable(schedule):
        return schedule
    require("schedule", schedule, tuple(SCHEDULES))
    return SCHEDULES[schedule]
