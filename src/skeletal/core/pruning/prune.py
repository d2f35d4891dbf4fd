"""Prune a network before training: Algorithm 1 around a caller's own model, which is left as it was found."""

import operator
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from skeletal.core.choices import named, require
from skeletal.core.diagnosis.connectivity import reaches_output
from skeletal.core.errors import NonFiniteError
from skeletal.core.masks.mask import Mask
from skeletal.core.model.batches import Cycle, Loss
from skeletal.core.model.denormals import flush_denormals
from skeletal.core.model.distributed import agree, everyone, rank, together
from skeletal.core.model.gradients import Derivatives
from skeletal.core.model.precision import autocast
from skeletal.core.model.preserve import device_of, differentiable, preserve_model, preserve_random_state
from skeletal.core.model.shards import is_sharded
from skeletal.core.model.tensors import Tensors, not_finite, widen
from skeletal.core.model.weights import Selection, prunable_weights, unwrap
from skeletal.core.patterns.choice import pattern_of
from skeletal.core.patterns.grouped import Groups
from skeletal.core.patterns.pattern import Pattern, Patterned
from skeletal.core.progress import shown, stage
from skeletal.core.pruning.algorithm import Step, algorithm_1
from skeletal.core.pruning.describe import describe, warn_if_alone, warn_if_collapsed, warn_if_layers_differ
from skeletal.core.pruning.keep_top import keep_pattern, keep_top
from skeletal.core.pruning.methods import METHODS
from skeletal.core.pruning.schedules import Schedule
from skeletal.core.pruning.scores import Score
from skeletal.core.pruning.settings import Settings, density_of
from skeletal.core.pruning.shorthand import MANY, expanded
from skeletal.core.pruning.weight_norm import normed, refuse_empty
from skeletal.core.seeds import seed_of


def _engine(engine: str | type[Derivatives]) -> type[Derivatives]:
    if not isinstance(engine, str):
        return engine
    require("engine", engine, (Derivatives.name,))
    return Derivatives


def _whole(weights: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """The same weights, none of which is sharded across processes."""
    if sharded := [name for name, weight in weights.items() if is_sharded(weight)]:
        raise ValueError(f"{sharded[0]} is sharded already: prune first, then fully_shard, then attach the mask")
    return weights


def _find(
    model: nn.Module,
    batches: Iterable[Any] | None,
    weights: dict[str, nn.Parameter],
    settings: Settings,
    on_step: Callable[[Step], None] | None,
) -> tuple[Mask, str]:
    """The mask, and why it is unknown whether it leaves a path, if it is."""
    counts = settings.counts(sum(weight.numel() for weight in weights.values()))
    training, loss = settings.bn_mode == "train", settings.loss
    with preserve_model(model, training=training, seed=settings.seed, loss=loss), flush_denormals():
        settings.agree(model, counts, list(weights))
        theta = _initial(weights)
        stream = None if batches is None else Cycle(batches)
        example = None if stream is None else stream.peek()
        derivatives = None if stream is None else settings.derivatives(model, stream)
        keep = keep_top
        if settings.pattern is not None:
            with preserve_random_state(model):
                patterned = Patterned(settings.pattern, model, weights, example)
            patterned.check(counts[-1])
            keep = partial(keep_pattern, patterned)
        # Not the seed itself, of which initial weights are often drawn: noise would be a function of them.
        generator = torch.Generator().manual_seed(seed_of("scores", settings.seed))
        mask: Tensors = {}
        filled: list[dict[str, int]] = []
        norms = normed(model, weights)
        with stage(f"pruning, {settings.method}", len(counts), unit="step") as told:
            if stream is not None and settings.batches_per_step > 1:
                told.update(note=lambda: f"batch {stream.taken - told.done * settings.batches_per_step}")
            for step in algorithm_1(theta, settings.row, counts, derivatives, generator, settings.on_collapse, keep):
                mask = step.mask
                refuse_empty(norms, mask, f"step {step.step} of {len(counts)}")
                if step.filled:
                    filled.append({"step": step.step, "weights": step.filled})
                if on_step is not None:
                    with preserve_random_state(model):
                        on_step(step)
                told.update(step.step)
                del step  # frees its scores while the next step needs memory for activations
        connected, why_unknown = None, "no batches were given"
        if example is not None:
            connected, why_unknown = reaches_output(model, mask, example)
        connected, why_unknown = everyone((connected, why_unknown))[0]
        agree(mask, "a score of your own has to be the same function on every rank")
    made = describe(settings, len(counts), model, weights)
    made |= {"why_dense": derivatives and derivatives.why_dense, "filled": filled, "connected": connected}
    return Mask(mask, made), why_unknown


def _initial(weights: dict[str, nn.Parameter]) -> Tensors:
    """θ, in at least float32."""
    theta = {name: widen(weight.detach()) for name, weight in weights.items()}
    if (name := not_finite(theta)) is not None:
        raise NonFiniteError(f"{name} {tuple(theta[name].shape)} holds NaN or infinite weights")
    return theta


@together()  # an argument that is wrong on one rank stops all
@differentiable()
def prune(
    model: nn.Module,
    batches: Iterable[Any] | None = None,
    *,
    density: float | None = None,
    sparsity: float | None = None,
    method: str = "force",
    steps: int | None = None,
    batches_per_step: int | None = None,
    schedule: str | Schedule = "exponential",
    loss: Loss | None = None,
    prunable: Selection = None,
    score: Score | None = None,
    pattern: str | Pattern | Groups | None = None,
    bn_mode: Literal["train", "eval"] = "train",
    average: Literal["signed", "absolute"] = "signed",
    precision: Literal["float32", "bfloat16"] = "float32",
    engine: str | type[Derivatives] = "dense",
    micro_batch: int | None = None,
    recompute: bool = False,
    on_collapse: Literal["raise", "keep"] = "raise",
    seed: int = 0,
    on_step: Callable[[Step], None] | None = None,
    progress: bool = False,
) -> Mask:
    """Find the few weights of a network worth having, before training (paper, Algorithm 1).

    The model is left exactly as found: weights, buffers, gradients, mode, hooks and every global random state. So is
    what the model's attributes and hooks can reach: layers in a list, caches, random generators, the attributes of an
    object whose method is a hook; and modules and tensors that a `loss` can reach, be it a module or a function. What
    `on_step` writes there is undone as well, so let it write elsewhere.
    `mask.attach(model)` makes it a skeleton.

    Under torchrun, call it on every rank, with the same arguments and weights, and with each rank's own share of the
    batches: gradients are averaged over all ranks, each weighted by its examples, and all find the same mask.

    Args:
        model: any module, on any device.
        batches: an iterable of `(inputs, targets)` or of dicts of the model's arguments, with the examples along
            dimension 0 (for the time-first batches of recurrent layers see `micro_batch`). It is cycled, and never
            restarted between steps. Methods without data (random, magnitude) need none.
        density: fraction of prunable weights to keep, in (0, 1]; exactly `round(density * total)` are kept,
            ties going to the first position.
        sparsity: 1 - density. Give one of the two.
        method: a row of `skeletal.METHODS`, in any case, with `-` or `_`; "SNIP-MB" and "GRASP-MB" are the one-shot
            methods on many batches, "Iter SNIP" is another name for FORCE.
        steps: T of Algorithm 1; by default the method's own.
        batches_per_step: batches whose gradients are averaged at each step; by default 1, or 60 for SNIP-MB and
            GRASP-MB, as many as FORCE sees in all its steps.
        schedule: "exponential" (Eq. 9), "linear" (Eq. 8), or a function `(total, kept, steps) -> counts`.
        loss: a function `(outputs, targets) -> scalar`, for dict batches `(outputs, batch) -> scalar`; by default
            cross-entropy, for dict batches the model's own `outputs.loss`.
        prunable: which weights; see `prunable_weights`.
        score: a function of a `Point` that replaces the method's own; higher = keep, and exactly 0 means that no
            signal passes.
        pattern: which weights stay or go together: "2:4" or any N:M (at most N of every M inputs that follow each
            other), "fan-in" (as many weights in every output unit of a layer), "4x4" or any RxC (blocks of R outputs
            and C inputs), "channels" (whole channels, which `compact` removes); or a function of your own, as
            `skeletal.core.patterns.grouped.Groups` says. Scores are the same; the choice is the pattern's, at every
            step. N:M keeps exactly `round(density * total)` weights, the others at most as many, up to the last group
            that fits; `mask.density` is the true one (docs/howto/patterns.md).
        bn_mode: mode of the whole model while it is scored.
        average: "signed" averages the batches' gradients, and scores take the absolute value after that, as in the
            paper's code; "absolute" averages each batch's absolute values. With one batch per step, both are the same.
        precision: "bfloat16" runs the forward pass under autocast, in about half the time and, where activations are
            most of it, two thirds of the memory (docs/cost.md); weights, loss, gradients and scores stay float32. The
            mask differs, as it does with other data. Only for methods that score by the loss; others ignore it.
        engine: "sparse" takes gradients on a compiled skeleton once few weights are left; its cost then scales with
            them (nested methods, weights in float32 or float64, on a CPU; others, networks torch.fx cannot trace, and
            losses that read the network's weights are scored densely, as `mask.metadata["why_dense"]` says). Each
            step's scores are the same up to rounding, except that active dropout draws other numbers, and that your own
            scores see gradients of 0 at pruned weights. Or a subclass of `Derivatives`, which computes derivatives in
            its own way.
        micro_batch: run each batch in pieces of at most this many examples, to fit large images in little memory.
            Pieces are cut along dimension 0 of every tensor, or from lists with an entry for each example; batches
            that are time-first throughout would be cut along time, which nothing here can tell. If
            the loss is a mean over examples, the gradient is the whole batch's, each piece weighted by its examples;
            but batch norm in mode "train" takes its statistics from a piece (docs/imagenet.md has the effect). Methods
            with second derivatives keep a step's batches in memory, unless `batches` has a method `starting_at(k)`
            that iterates from its k-th batch on.
        recompute: keep only the inputs of a network's repeated blocks and of pieces of long sequences, and recompute
            the rest in the backward pass: the same mask, bit for bit, in less memory, for up to half as much time again
            (docs/cost.md).
        on_collapse: "raise" stops when fewer weights have a finite, non-zero score than are to be kept;
            "keep" fills up by position and records it in `mask.metadata["filled"]`.
        seed: seeds random scores, dropout and any loader that uses the global random state.
        on_step: called after each step with a `Step`.
        progress: show progress on stderr: a bar, or lines where stderr is neither a terminal nor a notebook.

    Returns:
        The mask; `mask.metadata` records how it was made.

    Raises:
        ValueError: density, steps, method, schedule or another option out of range; no prunable weights, or sharded;
            no batches, or one that `micro_batch` cannot cut; a pattern that does not allow this density or this
            network; ranks that differ in arguments or weights; bfloat16 on a device that has no autocast; a sparse
            engine for a method that looks at pruned weights; reentrant activation checkpointing for a method that needs
            more than the gradient of the loss.
        TypeError: a batch or a loss of the wrong kind.
        NonFiniteError: NaN or infinity in weights, loss, gradients or scores.
        CollapsedError: see `on_collapse`; names step, density and empty layers.
        RuntimeError: another rank has failed; names the rank and its error. Or `recompute` is on, and a part of the
            network writes to its own input.

    Warns:
        CollapseWarning: the finished mask leaves no path from input to output; or layers are empty and there are
            no batches to find a path with; or weights were filled in at the last step.
        UserWarning: a method that gives each layer a number of weights, such as random-erk, meets a pattern whose
            groups do not; or a launcher has started several processes, which have not joined a process group.

    """
    method, many = expanded(method)
    if batches_per_step is None:
        batches_per_step = MANY if many else 1
    settings = Settings(
        density=density_of(density, sparsity),
        method=named("method", method, METHODS),
        steps=None if steps is None else operator.index(steps),
        batches_per_step=operator.index(batches_per_step),
        schedule=schedule,
        loss=loss,
        score=score,
        pattern=pattern_of(pattern),
        bn_mode=bn_mode,
        average=average,
        precision=precision,
        engine=_engine(engine),
        micro_batch=None if micro_batch is None else operator.index(micro_batch),
        recompute=recompute,
        on_collapse=on_collapse,
        seed=operator.index(seed),
    )
    warn_if_alone()
    warn_if_layers_differ(settings)
    if batches is None and settings.row.needs_data:
        raise ValueError(f"method {method!r} needs batches: an iterable of (inputs, targets) or of dicts")
    model = unwrap(model)
    weights = _whole(prunable_weights(model, prunable))
    autocast(precision, device_of(model))  # refuses a device that has none
    with shown(rank() == 0) if progress else nullcontext():
        mask, why_unknown = _find(model, batches, weights, settings, on_step)
    warn_if_collapsed(mask, why_unknown)
    return mask
