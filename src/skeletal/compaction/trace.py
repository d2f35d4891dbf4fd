"""A network as a graph of its operations, with the shape of every tensor, or the reason why there is none."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from skeletal.core.diagnosis.probing import first_that_runs, shorten
from skeletal.core.model.batches import forward, map_tensors, to_device
from skeletal.core.model.preserve import device_of, preserve_mode, preserve_random_state
from skeletal.core.model.tensors import Tensors


def drops_paths(module: nn.Module) -> bool:
    """Whether a module is torchvision's or timm's stochastic depth: tracing into it would fix its mode."""
    library = type(module).__module__.partition(".")[0]
    return (library, type(module).__name__) in {("torchvision", "StochasticDepth"), ("timm", "DropPath")}


def _with_activation(module: nn.Module) -> bool:
    """Whether a module is timm's batch norm with an activation, or was, until a trace took it to pieces."""
    fused = type(module).__module__.startswith("timm.") and type(module).__name__ == "BatchNormAct2d"
    return fused or (type(module) is nn.BatchNorm2d and {"drop", "act"} <= module._modules.keys())


class UntraceableError(ValueError):
    """A network whose forward pass torch.fx cannot write down as one graph; the message says why."""


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True  # what is made of buffers is made when the graph runs

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return drops_paths(m) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if _with_activation(m):  # three operations, of which the first is a batch norm like others
            m.__class__ = nn.BatchNorm2d
            normed = super().call_module(m, nn.BatchNorm2d.forward.__get__(m), args, kwargs)
            return m.get_submodule("act")(m.get_submodule("drop")(normed))
        return super().call_module(m, forward, args, kwargs)


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
    with torch.no_grad(), preserve_mode(module, training=False), preserve_random_state(module):
        return _Shapes(module).run(*arguments(module, to_device(batch, device_of(module))))


def trace(model: nn.Module, batch: Any) -> fx.GraphModule:
    """Write a network down as a torch.fx graph of its leaf modules and functions.

    The graph has the model's own module names, works for any batch size the model works for, and follows
    `train()` and `eval()`. It has run on two examples of the batch and given what the model gives.

    Args:
        model: becomes part of the graph module, and may be spoilt if it cannot: hand over a copy.
        batch: as `skeletal.core.model.batches.forward` takes it.

    Returns:
        The graph module, with `node.meta["shape"]` of every tensor for those two examples.

    Raises:
        ValueError: the model does not run on this batch.
        UntraceableError: control flow that depends on data, another graph in train mode than in eval mode, or a
            forward pass that the graph does not repeat.

    """
    few, expected = first_that_runs(model, [lambda n=n: _run(model, shorten(batch, n)) for n in (2, None)])
    graph = _same_in_both_modes(_graph(model, training=True), _graph(model, training=False))
    modes = modes_of(model)
    module = fx.GraphModule(model, graph, type(model).__name__)
    take_modes(module, modes, model.training)
    try:
        with torch.no_grad(), preserve_mode(module, training=False), preserve_random_state(module):
            run = _Writes(module)
            found = run.run(*arguments(module, to_device(few, device_of(model))))
    except Exception as error:  # whatever the model's own code raises where its graph takes another way
        raise UntraceableError(f"its graph does not run: {type(error).__name__}: {error}") from error
    if not _same(expected, found):
        raise UntraceableError("its graph gives another output than the model: a forward pass that depends on data")
    _settle_writes(module, run)
    return module


def _run(model: nn.Module, batch: Any) -> tuple[Any, Any]:
    with torch.no_grad(), preserve_mode(model, training=False), preserve_random_state(model):
        return batch, forward(model, to_device(batch, device_of(model)))


def _graph(model: nn.Module, *, training: bool) -> fx.Graph:
    before = {name: (tensor, tensor._version) for name, tensor in state_tensors(model).items()}
    try:
        with preserve_mode(model, training=training), preserve_random_state(model):
            graph = _Tracer().trace(model)
    except Exception as error:  # torch.fx raises whatever the model's code raises on its proxies
        first = str(error).strip().partition("\n")[0]
        raise UntraceableError(f"torch.fx cannot trace it: {type(error).__name__}: {first}") from error
    for name, tensor in state_tensors(model).items():
        old, version = before.get(name, (None, 0))
        if tensor is not old or tensor._version != version:
            raise UntraceableError(f"its forward pass writes to {name} itself")
    return graph


def _same_in_both_modes(train: fx.Graph, evaluate: fx.Graph) -> fx.Graph:
    """The graph of train mode, in which functions that take `training=` read it from the module."""
    different = "its forward pass is another one in train mode than in eval mode"
    if len(train.nodes) != len(evaluate.nodes):
        raise UntraceableError(different)
    partner: dict[fx.Node, fx.Node] = {}
    depends: list[fx.Node] = []
    for one, two in zip(train.nodes, evaluate.nodes, strict=True):
        partner[two] = one
        args, kwargs = fx.map_arg((two.args, two.kwargs), partner.__getitem__)
        training = one.kwargs.get("training"), kwargs.get("training")
        if (one.op, one.target, one.args) != (two.op, two.target, args):
            raise UntraceableError(different)
        if dict(one.kwargs) | {"training": None} != dict(kwargs) | {"training": None}:
            raise UntraceableError(different)
        if training == (True, False):
            depends.append(one)
        elif training[0] != training[1]:
            raise UntraceableError(different)
    for node in depends:
        with train.inserting_before(node):
            node.update_kwarg("training", train.create_node("get_attr", "training"))
    return train


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


def _same(one: Any, two: Any) -> bool:
    flat: list[list[Tensor]] = [[], []]
    for tree, found in zip((one, two), flat, strict=True):
        if isinstance(tree, Mapping):
            tree = list(tree.values())
        map_tensors(lambda tensor, found=found: found.append(tensor) or tensor, tree)
    return len(flat[0]) == len(flat[1]) and all(
        a.shape == b.shape and torch.allclose(a, b, equal_nan=True) for a, b in zip(*flat, strict=True)
    )
