"""One graph for every way to call a network: in both modes, with or without autocast and optional arguments."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager, nullcontext
from itertools import takewhile, zip_longest
from typing import Any

import torch
from torch import fx, nn

from skeletal.compaction.tracing.tracer import Refusal, Tracer
from skeletal.core.model.preserve import differentiable, preserve_mode, preserve_random_state

_NONE: Mapping[str, Any] = {}


class UntraceableError(ValueError):
    """A network whose forward pass torch.fx cannot trace as one graph; the message says why."""


def one_graph(model: nn.Module) -> fx.Graph:
    """Trace a network several times; whatever differs between traces is kept whole, one innermost module at a time.

    Raises:
        UntraceableError: the network's own forward pass, and not only that of a part, is not always the same, or does
            something that a graph cannot hold.

    """
    whole: dict[str, str] = {}
    while True:
        train = _graph_in(model, whole, training=True)
        known = len(whole)
        evaluate, cast = _graph_in(model, whole, training=False), _graph_in(model, whole, training=True, autocast=True)
        if len(whole) > known:
            continue  # the first was traced as if more modules could be
        for difference, when in (
            (_first_difference(train, evaluate, flag="training"), "in train mode than in eval mode"),
            (_first_difference(train, cast), "under autocast"),
            (_asked_for_options(model, whole, train), "with other optional arguments"),
        ):
            if difference is None:
                continue
            if not (owner := _common([node.meta["owner"] for node in difference])):
                raise UntraceableError(f"its forward pass is another one {when}")
            whole[owner] = f"does other operations {when}"
            break
        else:
            _follow_mode(train, evaluate)
            return train


def _graph_in(
    model: nn.Module,
    whole: dict[str, str],
    *,
    training: bool,
    autocast: bool = False,
    options: Mapping[str, Any] = _NONE,
) -> fx.Graph:
    try:
        with (
            differentiable(),
            _autocast() if autocast else nullcontext(),
            preserve_mode(model, training=training),
            preserve_random_state(model),
        ):
            return Tracer(whole, options).trace(model)
    except Refusal as refusal:
        raise UntraceableError(f"its forward pass {refusal}") from refusal
    except Exception as error:  # torch.fx raises whatever the model's code raises on its proxies
        first = str(error).strip().partition("\n")[0]
        raise UntraceableError(f"torch.fx cannot trace it: {type(error).__name__}: {first}") from error


@contextmanager
def _autocast() -> Generator[None]:
    """Autocast to bfloat16, as seen by code that checks for it; on GPUs, too, present or not."""
    before = [(kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda")]
    try:
        for kind, _, _ in before:
            torch.set_autocast_enabled(kind, True)
            torch.set_autocast_dtype(kind, torch.bfloat16)
        yield
    finally:
        for kind, enabled, dtype in before:
            torch.set_autocast_enabled(kind, enabled)
            torch.set_autocast_dtype(kind, dtype)


def _asked_for_options(model: nn.Module, whole: dict[str, str], graph: fx.Graph) -> list[fx.Node] | None:
    """Where a network acts differently if an optional argument is None, True or False: `is` is not traced."""
    defaults = {str(node.target): node.args[0] for node in graph.nodes if node.op == "placeholder" and node.args}
    options = {name: value for name, value in defaults.items() if value is None or isinstance(value, bool)}
    flipped = {name: value if value is None else not value for name, value in options.items()}
    for values in (options, flipped) if flipped != options else (options,) if options else ():
        parts = dict(whole)
        try:
            fixed = _graph_in(model, parts, training=True, options=values)
        except UntraceableError:
            continue  # nor does the original take it
        if len(parts) == len(whole) and (found := _first_difference(fixed, graph, options=values)) is not None:
            return found
    return None


def _first_difference(
    one: fx.Graph, two: fx.Graph, *, flag: str = "", options: Mapping[str, Any] = _NONE
) -> list[fx.Node] | None:
    """The first operations in the same place that differ; where one graph ends, the other's operation.

    Args:
        one: a graph.
        two: of the same network.
        flag: an argument that may be True in the first and False in the second.
        options: placeholders of the second, and what they are in the first.

    """
    partner: dict[fx.Node, Any] = {}
    for a, b in zip_longest(one.nodes, two.nodes):
        if a is None or b is None:
            return [node for node in (a, b) if node is not None]
        partner[b] = options.get(str(b.target), a) if b.op == "placeholder" else a
        args, kwargs = fx.map_arg((b.args, b.kwargs), lambda node: partner.get(node, node))
        mine, others = dict(a.kwargs), dict(kwargs)
        flags = mine.pop(flag, None), others.pop(flag, None)
        same = flags[0] == flags[1] or flags == (True, False)
        if not same or (a.op, a.target, a.args, mine) != (b.op, b.target, args, others):
            return [a, b]
    return None


def _common(owners: list[str]) -> str:
    """The innermost module that holds both."""
    same = takewhile(lambda pair: pair[0] == pair[1], zip(*(owner.split(".") for owner in owners), strict=False))
    return ".".join(first for first, _ in same)


def _follow_mode(train: fx.Graph, evaluate: fx.Graph) -> None:
    """Let functions that take `training=` read it from the module, in the graph of train mode."""
    for one, two in zip(list(train.nodes), evaluate.nodes, strict=True):
        if (one.kwargs.get("training"), two.kwargs.get("training")) == (True, False):
            with train.inserting_before(one):
                flag = train.create_node("get_attr", "training")
                flag.meta["owner"] = ""
                one.update_kwarg("training", flag)
