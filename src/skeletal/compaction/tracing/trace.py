"""A network as a graph of its operations, with the shape of every tensor, or the reason why there is no graph."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from skeletal.compaction.tracing.agreement import CannotRunError, Reference
from skeletal.compaction.tracing.graph import UntraceableError, one_graph
from skeletal.compaction.tracing.network import GraphNetwork, Inlined
from skeletal.compaction.tracing.tracer import has_own_forward, more_than_its_forward
from skeletal.core.diagnosis.probing import first_that_runs, shorten
from skeletal.core.model.batches import forward, to_device
from skeletal.core.model.preserve import (
    device_of,
    preserve_mode,
    preserve_model,
    preserve_random_state,
    preserve_values,
)
from skeletal.core.model.state.snapshot import copied, take_attributes
from skeletal.core.model.tensors import Tensors


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


def take_trainable(module: nn.Module, trainable: Mapping[str, bool]) -> None:
    """Freeze and unfreeze parameters by name; those without a name there stay as they are."""
    for name, parameter in module.named_parameters(remove_duplicate=False):
        parameter.requires_grad_(trainable.get(name, parameter.requires_grad))


def trainable_of(module: nn.Module) -> dict[str, bool]:
    """Whether each parameter of a network wants a gradient, by its name."""
    return {name: weight.requires_grad for name, weight in module.named_parameters(remove_duplicate=False)}


def become_like(module: nn.Module, source: nn.Module, training: bool) -> None:
    """Take over each part's train or eval mode, what the network's own code has written to attributes, and what is
    frozen.

    Args:
        module: changed.
        source: a network that has taken its place.
        training: the mode of parts that the source has not.

    """
    take_attributes(module, source)
    take_modes(module, modes_of(source), training)
    take_trainable(module, trainable_of(source))


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
    """Also notes which node writes to which tensor. Keeps all values, because freed memory is reused."""

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
    with torch.no_grad(), preserve_model(module, training=False, seed=0), preserve_values(module):
        return _Shapes(module).run(*arguments(module, to_device(batch, device_of(module))))


def trace(model: nn.Module, batch: Any) -> fx.GraphModule:
    """Write a network down as a torch.fx graph of its leaf modules and functions.

    The graph has the model's own module names, works for any batch size the model works for, and follows
    `train()` and `eval()`. A part whose forward pass a graph cannot hold is one node, which calls it unchanged and
    has the reason in `node.meta["whole"]`. The graph is checked against the model on a few examples: see `Reference`.

    Args:
        model: becomes part of the graph module, and may be left damaged if tracing fails: pass a copy.
        batch: as `skeletal.core.model.batches.forward` takes it.

    Returns:
        The graph module, with `node.meta["shape"]` of every tensor for those two examples.

    Raises:
        ValueError: the model does not run on this batch.
        UntraceableError: the network's own forward pass, not only that of a part, does something that a graph cannot
            hold, or the graph differs from the network in outputs, gradients, buffers or random draws in either mode.

    """
    if why := more_than_its_forward(model) or ("has a forward() of its own" if has_own_forward(model) else ""):
        raise UntraceableError(f"{type(model).__name__} {why}")
    reference = _reference(model, batch)
    graph = one_graph(model)
    modes = modes_of(model)
    module = GraphNetwork(model, graph, type(model).__name__)
    take_modes(module, modes, model.training)
    module.take_over(model)
    for name, part in module.named_modules():
        if type(part) is nn.Module:
            inlined: Any = part
            inlined.__class__ = Inlined
            inlined.take_over(model.get_submodule(name))
    _note_shapes_and_writes(module, batch)
    if (difference := reference.difference(module)) is not None:
        raise UntraceableError(f"its graph does not do what the model does: {difference}")
    return module


def _reference(model: nn.Module, batch: Any) -> Reference:
    try:
        return Reference(model, batch)
    except CannotRunError as error:
        # If a model runs only in one mode, on the whole example, that is not the caller's mistake.
        first_that_runs(model, [lambda n=n: _run(model, shorten(batch, n)) for n in (2, None)])
        raise UntraceableError(f"a graph of it cannot be compared with it: {error}") from error


def _run(model: nn.Module, batch: Any) -> Any:
    copy = copied(model)
    errors = []
    for training, gradients in ((False, False), (True, False), (False, True)):  # some take derivatives themselves
        try:
            with (
                torch.set_grad_enabled(gradients),
                preserve_mode(copy, training=training),
                preserve_random_state(copy),
            ):
                return forward(copy, to_device(batch, device_of(copy)))
        except Exception as error:  # whatever the model's own code raises
            errors.append(error)
    raise errors[0]


def _note_shapes_and_writes(module: fx.GraphModule, batch: Any) -> None:
    errors = []
    for examples in (2, None):
        few = to_device(shorten(batch, examples), device_of(module))
        for training in (False, True):
            alone = preserve_model(module, training=training, seed=0), preserve_values(module)
            try:
                with torch.no_grad(), alone[0], alone[1]:
                    run = _Writes(module)
                    run.run(*arguments(module, few))
            except Exception as error:  # whatever the model's own code raises if its graph takes another path
                errors.append(error)
            else:
                _settle_writes(module, run)
                return
    first = str(errors[0]).strip().partition("\n")[0]
    raise UntraceableError(f"its graph does not run: {type(errors[0]).__name__}: {first}")


def _settle_writes(module: fx.GraphModule, run: _Writes) -> None:
    """Make nodes that read a tensor after an in-place operation read that operation's node instead."""
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
