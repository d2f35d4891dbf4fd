"""A network as a graph of its operations, with the shape of every tensor, or the reason why there is none."""

import inspect
from collections.abc import Mapping
from itertools import takewhile, zip_longest
from typing import Any

import torch
from torch import Tensor, fx, nn

from skeletal.compaction.tracing.agreement import CannotRunError, Reference
from skeletal.compaction.tracing.network import GraphNetwork
from skeletal.compaction.tracing.tracer import Refusal, Tracer, more_than_its_forward
from skeletal.core.diagnosis.probing import first_that_runs, shorten
from skeletal.core.model.batches import forward, to_device
from skeletal.core.model.preserve import (
    device_of,
    differentiable,
    preserve_mode,
    preserve_random_state,
    preserve_values,
)
from skeletal.core.model.snapshot import copied
from skeletal.core.model.tensors import Tensors


class UntraceableError(ValueError):
    """A network whose forward pass torch.fx cannot write down as one graph; the message says why."""


def state_tensors(model: nn.Module) -> Tensors:
    """Parameters and buffers, under each of their names."""
    return dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))


def take_modes(module: nn.Module, modes: Mapping[str, bool], otherwise: bool) -> None:
    """Set train or eval mode of each part by its name; parts without a name there get `otherwise`."""
    for name, part in module.named_modules():
        part.training = modes.get(name, otherwise)


def modes_of(module: nn.Module) -> dict[str, bool]:
    """Whether each part of a network is in train mode, by its name."""
    return {name: part.training for name, part in module.named_modules()}


class _Arguments(nn.Module):
    def forward(self, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, kwargs


def arguments(module: fx.GraphModule, batch: Any) -> tuple[Any, ...]:
    """What the graph's placeholders get from a batch, in their order."""
    args, kwargs = forward(_Arguments(), batch)
    bound = inspect.signature(module.forward).bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.args


class _Shapes(fx.Interpreter):
    """Runs a graph and writes `node.meta["shape"]`."""

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        n.meta.pop("shape", None)
        if isinstance(result, Tensor):
            n.meta["shape"] = tuple(result.shape)
        return result


class _Writes(_Shapes):
    """Notes, too, which node writes to which tensor. Keeps all values: a freed tensor's memory is used again."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.tensors: dict[fx.Node, Tensor] = {}
        self.written: dict[fx.Node, list[fx.Node]] = {}

    def run_node(self, n: fx.Node) -> Any:
        before = {source: self.tensors[source]._version for source in n.all_input_nodes if source in self.tensors}
        result = super().run_node(n)
        changed = [source for source, version in before.items() if self.tensors[source]._version != version]
        if changed:
            self.written[n] = changed
        if isinstance(result, Tensor):
            self.tensors[n] = result
        return result


def note_shapes(module: fx.GraphModule, batch: Any) -> Any:
    """Run a batch through the graph in eval mode, write `node.meta["shape"]`, return the output."""
    alone = preserve_mode(module, training=False), preserve_random_state(module), preserve_values(module)
    with torch.no_grad(), alone[0], alone[1], alone[2]:
        return _Shapes(module).run(*arguments(module, to_device(batch, device_of(module))))


def trace(model: nn.Module, batch: Any) -> fx.GraphModule:
    """Write a network down as a torch.fx graph of its leaf modules and functions.

    The graph has the model's own module names, works for any batch size the model works for, and follows
    `train()` and `eval()`. A part whose forward pass a graph cannot hold is one node, which calls it as it is and
    has the reason in `node.meta["whole"]`. On a few examples the graph has given what the model gives: see `Reference`.

    Args:
        model: becomes part of the graph module, and may be spoilt if it cannot: hand over a copy.
        batch: as `skeletal.core.model.batches.forward` takes it.

    Returns:
        The graph module, with `node.meta["shape"]` of every tensor for those two examples.

    Raises:
        ValueError: the model does not run on this batch.
        UntraceableError: the network's own forward pass, not only that of a part, does what a graph cannot hold, or the
            graph differs from the network in outputs, gradients, buffers or random draws in either mode.

    """
    if why := more_than_its_forward(model):
        raise UntraceableError(f"{type(model).__name__} {why}")
    reference = _reference(model, batch)
    graph = _graph(model)
    modes = modes_of(model)
    module = GraphNetwork(model, graph, type(model).__name__)
    take_modes(module, modes, model.training)
    for part in module.modules():
        if type(part) is nn.Module:
            part.__class__ = Inlined
    _note_shapes_and_writes(module, batch)
    if (difference := reference.difference(module)) is not None:
        raise UntraceableError(f"its graph does not do what the model does: {difference}")
    return module


class Inlined(nn.Module):
    """What is left of a module whose operations a graph calls itself: a place for its parts."""

    def forward(self, *_: Any, **__: Any) -> Any:
        """Nothing calls it.

        Raises:
            RuntimeError: always.

        """
        raise RuntimeError("this module's operations are part of the network's graph; call the network")

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError(
            "a hook here would never run, as the network's graph calls this module's operations and not the module:"
            " register it before compacting or compiling, which then keeps the module whole, or on one of its layers"
        )

    register_forward_hook = register_forward_pre_hook = _refuse
    register_full_backward_hook = register_full_backward_pre_hook = register_backward_hook = _refuse


def _reference(model: nn.Module, batch: Any) -> Reference:
    try:
        return Reference(model, batch)
    except CannotRunError as error:
        # A model that runs in one mode on the whole example, and nowhere else, is no caller's mistake.
        first_that_runs(model, [lambda n=n: _run(model, shorten(batch, n)) for n in (2, None)])
        raise UntraceableError(f"a graph of it cannot be compared with it: {error}") from error


def _run(model: nn.Module, batch: Any) -> Any:
    copy = copied(model)
    errors = []
    for training in (False, True):
        try:
            with torch.no_grad(), preserve_mode(copy, training=training), preserve_random_state(copy):
                return forward(copy, to_device(batch, device_of(copy)))
        except Exception as error:  # whatever the model's own code raises
            errors.append(error)
    raise errors[0]


def _graph(model: nn.Module) -> fx.Graph:
    """One graph for both modes. What needs two is kept whole, the innermost module at a time."""
    whole: dict[str, str] = {}
    while True:
        known = len(whole)
        train, evaluate = (_graph_in(model, whole, training=training) for training in (True, False))
        if len(whole) > known:
            continue  # written down as if more could be
        owner = _merge(train, evaluate)
        if owner is None:
            return train
        if not owner:
            raise UntraceableError("its forward pass is another one in train mode than in eval mode")
        whole[owner] = "does other operations in train mode than in eval mode"


def _graph_in(model: nn.Module, whole: dict[str, str], *, training: bool) -> fx.Graph:
    try:
        with differentiable(), preserve_mode(model, training=training), preserve_random_state(model):
            return Tracer(whole).trace(model)
    except Refusal as refusal:
        raise UntraceableError(f"its forward pass {refusal}") from refusal
    except Exception as error:  # torch.fx raises whatever the model's code raises on its proxies
        first = str(error).strip().partition("\n")[0]
        raise UntraceableError(f"torch.fx cannot trace it: {type(error).__name__}: {first}") from error


def _merge(train: fx.Graph, evaluate: fx.Graph) -> str | None:
    """Let functions that take `training=` read it from the module, in the graph of train mode.

    Returns:
        None, or the name of the module that owns the first operation in which the graphs differ otherwise.

    """
    partner: dict[fx.Node, fx.Node] = {}
    depends: list[fx.Node] = []
    for one, two in zip_longest(train.nodes, evaluate.nodes):
        if one is None or two is None:
            return next(node.meta["owner"] for node in (one, two) if node is not None)
        partner[two] = one
        args, kwargs = fx.map_arg((two.args, two.kwargs), lambda node: partner.get(node, node))
        training = one.kwargs.get("training"), kwargs.get("training")
        same = (one.op, one.target, one.args) == (two.op, two.target, args)
        same &= dict(one.kwargs) | {"training": None} == dict(kwargs) | {"training": None}
        if not same or (training[0] != training[1] and training != (True, False)):
            return _common([one.meta["owner"], two.meta["owner"]])
        if training == (True, False):
            depends.append(one)
    for node in depends:
        with train.inserting_before(node):
            flag = train.create_node("get_attr", "training")
            flag.meta["owner"] = ""
            node.update_kwarg("training", flag)
    return None


def _common(owners: list[str]) -> str:
    """The innermost module that holds both."""
    same = takewhile(lambda pair: pair[0] == pair[1], zip(*(owner.split(".") for owner in owners), strict=False))
    return ".".join(first for first, _ in same)


def _note_shapes_and_writes(module: fx.GraphModule, batch: Any) -> None:
    errors = []
    for examples in (2, None):
        few = to_device(shorten(batch, examples), device_of(module))
        for training in (False, True):
            alone = preserve_mode(module, training=training), preserve_random_state(module), preserve_values(module)
            try:
                with torch.no_grad(), alone[0], alone[1], alone[2]:
                    run = _Writes(module)
                    run.run(*arguments(module, few))
            except Exception as error:  # whatever the model's own code raises where its graph takes another way
                errors.append(error)
            else:
                _settle_writes(module, run)
                return
    raise UntraceableError(f"its graph does not run: {type(errors[0]).__name__}: {errors[0]}")


def _settle_writes(module: fx.GraphModule, run: _Writes) -> None:
    """Whoever reads a tensor after an in-place operation has changed it shall read that operation's node."""
    order = {node: i for i, node in enumerate(module.graph.nodes)}
    for writer, sources in run.written.items():
        for source in sources:
            memory = run.tensors[source].untyped_storage().data_ptr()
            for alias, tensor in run.tensors.items():
                later = [user for user in alias.users if order[user] > order[writer]]
                if not later or order[alias] >= order[writer] or tensor.untyped_storage().data_ptr() != memory:
                    continue
                if alias is not source or run.tensors.get(writer) is not tensor:
                    raise UntraceableError(f"{writer.name} changes in place what {later[0].name} reads as {alias.name}")
                for user in later:
                    user.replace_input_with(source, writer)
    module.recompile()
