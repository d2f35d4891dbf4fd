"""Rewrite a traced network so that sparse layers follow each other without leaving their memory layout.

Walks the graph once and builds another. Between operations that know blocked maps, maps stay blocked; before one that
does not, they become a tensor again. Batch norm, addition and ReLU join the convolution before them.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from skeletal.compaction.tracing.tracer import acts_as_its_class
from skeletal.engine.modules import blocked
from skeletal.engine.modules.blocked import (
    BlockedDropout,
    BlockedMaxPool,
    BlockedMean,
    Elementwise,
    ToBlocks,
    can_pool,
    is_global,
)
from skeletal.engine.modules.conv_norm import ConvNorm
from skeletal.engine.modules.layers import Sparse, SparseConv2d

# By exact type here and below: a subclass may do anything.
_ZERO_MODULES = {nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.SiLU, nn.GELU, nn.Hardswish, nn.Tanh, nn.ELU}
_ZERO_FUNCTIONS: dict[Any, Callable[[Tensor], Tensor]] = {
    torch.relu: torch.relu, torch.relu_: torch.relu, F.relu: torch.relu, F.relu_: torch.relu,
    "relu": torch.relu, "relu_": torch.relu,
    F.relu6: F.relu6, F.silu: F.silu, F.gelu: F.gelu, F.hardswish: F.hardswish,
    torch.tanh: torch.tanh, "tanh": torch.tanh,
}  # fmt: skip
_PURE = {blocked.first, blocked.second, blocked.to_images}
PART = "blocked_"
"""How names of modules that are called beside the network's own begin."""

_ADD = {operator.add, operator.iadd, torch.add, "add", "add_"}


@dataclass(frozen=True)
class Lowered:
    """A graph on blocked maps, as code."""

    parts: dict[str, nn.Module]
    """modules without parameters that the code calls beside those of the network, by name"""
    bound: frozenset[str]
    """names of the network's modules that the code, or a part of it, was made for: no others can take their places"""
    forward: Callable[..., Any]
    """takes a module that has the network's modules and the parts, then the network's arguments"""
    code: str


@dataclass
class _Pending:
    """A convolution or a norm that has not run yet, because what follows may join it.

    Nothing that could read or write its parameters and statistics may run before it.
    """

    x: "_Value"
    convolution: tuple[str, SparseConv2d] | None = None
    norm: nn.BatchNorm2d | None = None
    other: "_Value | None" = None
    halo: int = 0

    @property
    def tensors(self) -> set[int]:
        """Ids of its parameters and statistics."""
        layers = [self.norm, None if self.convolution is None else self.convolution[1]]
        return {id(tensor) for layer in layers if layer is not None for tensor in _tensors(layer)}


def _tensors(layer: nn.Module) -> list[Tensor]:
    return [tensor for own in (layer._parameters, layer._buffers) for tensor in own.values() if tensor is not None]


@dataclass
class _Value:
    """What stands for a node of the old graph in the new one: a node, or something that will become one."""

    node: fx.Node | None
    blocked: bool
    pending: _Pending | None = None
    """what it waits for; None too where that has joined another"""
    images: fx.Node | None = None
    """the same as a tensor, where that was asked for"""


def lower(module: nn.Module, graph: fx.Graph) -> Lowered:
    """Code for a network whose sparse convolutions (`path` "sparse") exchange blocked maps.

    Args:
        module: with its layers made sparse; not changed.
        graph: of the network, with `node.meta["shape"]`; not changed.

    """
    return _Lowering(module, graph).run()


class _Lowering:
    def __init__(self, module: nn.Module, graph: fx.Graph) -> None:
        self.old, self.old_graph = module, graph
        self.graph = fx.Graph()
        self.values: dict[fx.Node, _Value] = {}
        self.halos = self._halos()
        self.read = self._read()
        self.parts: dict[str, nn.Module] = {}
        self._switched = 0
        """how many regions deep gradients have been switched: readers outside must not use what is made there"""

    def run(self) -> Lowered:
        for node in self.old_graph.nodes:
            if node.target is torch._C._set_grad_enabled:  # what comes before must not run after it
                self._run_pending()
                self._switched += -1 if isinstance(node.args[0], fx.Node) else 1
            value = self._blocked(node)
            if value is None:
                if node.op in ("call_module", "output"):
                    self._run_pending()
                value = _Value(self.graph.node_copy(node, self._plain), False)
            self.values[node] = value
        root = nn.Module()
        root.__dict__.update(self.old.__dict__)
        root._modules = dict(self.old._modules) | self.parts
        made = fx.GraphModule(root, self.graph)
        # Only what was added here: an operation of the network's own may have side effects even if nothing reads it.
        made.graph.eliminate_dead_code(is_impure_node=lambda node: node.target not in _PURE)
        made.graph.lint()
        made.recompile()
        called = {node.target for node in made.graph.nodes if node.op == "call_module"}
        bound = {
            str(node.target)
            for node in self.old_graph.nodes
            if node.op == "call_module" and (node.target not in called or isinstance(self._module(node), Sparse))
        }
        return Lowered(self.parts, frozenset(bound), type(made).forward, made.code)

    def _run_pending(self, sharing: set[int] | None = None) -> None:
        """Run what still waits for operations to join it, all or what shares some of these tensors."""
        for value in [*self.values.values()]:
            if value.pending is not None and (sharing is None or value.pending.tensors & sharing):
                self._run(value)

    def _waiting(self, pending: _Pending) -> _Value:
        """A convolution or a norm that waits for what may join it, unless others use its tensors."""
        if pending.norm is not None:
            self._run_pending({id(tensor) for tensor in _tensors(pending.norm)})
        value = _Value(None, True, pending)
        if pending.tensors & self.read:
            self._run(value)
        return value

    def _read(self) -> set[int]:
        """Ids of the tensors that the graph itself reads, and may write to, at some time."""
        names = [str(node.target) for node in self.old_graph.nodes if node.op == "get_attr"]
        return {id(operator.attrgetter(name)(self.old)) for name in names}

    def _halos(self) -> dict[tuple[int, int], int]:
        """For each size of maps, a halo that suffices for all convolutions on it, so that all share a grid."""
        found: dict[tuple[int, int], int] = {}
        for node in self.old_graph.nodes:
            layer = self._module(node)
            size = self._size(node.args[0]) if node.args else None
            sparse = isinstance(layer, SparseConv2d) and layer.path == "sparse" and acts_as_its_class(layer)
            if sparse and size is not None:
                for grid in layer.grids(*size):
                    key = grid.height, grid.width
                    found[key] = max(found.get(key, 0), grid.halo)
        return found

    def _module(self, node: fx.Node) -> Any:
        return self.old.get_submodule(str(node.target)) if node.op == "call_module" else None

    @staticmethod
    def _size(node: Any) -> tuple[int, int] | None:
        shape = node.meta.get("shape") if isinstance(node, fx.Node) else None
        return (shape[2], shape[3]) if shape is not None and len(shape) == 4 else None

    def _halo(self, node: fx.Node) -> int:
        size = self._size(node)
        return self.halos.get(size, 0) if size else 0

    def _blocked(self, node: fx.Node) -> _Value | None:
        """The node on blocked maps, or None where it does not know them or has none before it."""
        layer = self._module(node)
        if layer is not None and not acts_as_its_class(layer):
            return None
        inputs = [argument for argument in node.args if isinstance(argument, fx.Node)]
        if isinstance(layer, SparseConv2d) and layer.path == "sparse" and self._size(node) and len(inputs) == 1:
            x = self._in_blocks(inputs[0], layer)
            return self._waiting(_Pending(x, (str(node.target), layer), halo=self._halo(node)))
        if type(layer) is nn.BatchNorm2d and inputs and self.values[inputs[0]].blocked:
            x = self.values[inputs[0]]
            if x.pending is not None and x.pending.norm is None and self._alone(inputs[0]):
                return self._waiting(replace(self._taken(x), norm=layer))
            return self._waiting(_Pending(x, norm=layer, halo=self._halo(node)))
        if node.target in _ADD and len(inputs) == len(node.args) == 2 and not node.kwargs:
            return self._add(*inputs)
        if node.target in (torch.cat, torch.concat) and node.args:
            return self._concatenate(node)
        if not inputs or not self.values[inputs[0]].blocked:
            return None
        x = self.values[inputs[0]]
        if type(layer) is nn.MaxPool2d and can_pool(layer):
            return self._call(BlockedMaxPool(layer, self._halo(node)), x)
        if type(layer) is nn.AdaptiveAvgPool2d and is_global(layer.output_size):
            return _Value(self.graph.call_module(self._part(BlockedMean(layer)), (self._run(x),)), False)
        if self._is_global_mean(node):
            out = self.graph.call_function(blocked.global_mean, (self._run(x),))
            if len(node.meta["shape"]) == 2:
                out = self.graph.call_method("flatten", (out, 1))
            return _Value(out, False)
        return self._elementwise(node, layer, x)

    def _elementwise(self, node: fx.Node, layer: Any, x: _Value) -> _Value | None:
        kind = type(layer)
        relu = kind is nn.ReLU or _ZERO_FUNCTIONS.get(node.target) is torch.relu
        if relu and x.pending is not None and x.pending.norm is not None and self._alone(node.args[0]):
            return _Value(self._start(self._taken(x), relu=True), True)
        if kind is nn.Identity:
            return x if self._alone(node.args[0]) else _Value(self._run(x), True)
        if kind is nn.Dropout:
            return self._call(BlockedDropout(layer), x)
        if kind in _ZERO_MODULES:
            return self._call(Elementwise(layer), x)
        if node.target in _ZERO_FUNCTIONS and len(node.args) == 1 and not set(node.kwargs) - {"inplace"}:
            return self._call(Elementwise(_ZERO_FUNCTIONS[node.target]), x)
        return None

    def _add(self, one: fx.Node, two: fx.Node) -> _Value | None:
        pairs = [(one, self.values[one]), (two, self.values[two])]
        if not all(value.blocked for _, value in pairs) or one is two or one.meta["shape"] != two.meta["shape"]:
            return None
        for (node, value), (_, other) in (pairs[::-1], pairs):
            pending = value.pending
            if pending is not None and pending.norm is not None and pending.other is None and self._alone(node):
                self._run(other)
                return _Value(None, True, replace(self._taken(value), other=other))
        out = self.graph.call_function(blocked.add, tuple(self._run(value) for _, value in pairs))
        return _Value(out, True)

    def _concatenate(self, node: fx.Node) -> _Value | None:
        parts: Any = node.args[0]
        dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        if dim not in (1, -3) or not isinstance(parts, (list, tuple)):
            return None
        if not all(isinstance(part, fx.Node) and self.values[part].blocked for part in parts):
            return None
        maps = [self._run(self.values[part]) for part in parts]
        return _Value(self.graph.call_function(blocked.concatenate, (maps,)), True)

    @staticmethod
    def _is_global_mean(node: fx.Node) -> bool:
        if node.target is F.adaptive_avg_pool2d:
            return is_global(node.args[1] if len(node.args) > 1 else node.kwargs.get("output_size"))
        if node.target in ("mean", torch.mean):
            dims: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
            known = set(node.kwargs) <= {"dim", "keepdim"} and len(node.args) <= 3
            return known and isinstance(dims, (list, tuple)) and {d % 4 for d in dims} == {2, 3}
        return False

    @staticmethod
    def _alone(node: Any) -> bool:
        return len(node.users) == 1

    def _call(self, module: nn.Module, x: _Value) -> _Value:
        return _Value(self.graph.call_module(self._part(module), (self._run(x),)), True)

    def _part(self, module: nn.Module) -> str:
        name = f"{PART}{len(self.parts)}"
        self.parts[name] = module
        return name

    def _run(self, value: _Value) -> fx.Node:
        """The node of a value; if it was pending, it runs now."""
        if value.node is None:
            value.node = self._start(self._taken(value))
        return value.node

    @staticmethod
    def _taken(value: _Value) -> _Pending:
        """What a value waits for, for another that it joins."""
        pending, value.pending = value.pending, None
        assert pending is not None
        return pending

    def _start(self, pending: _Pending, *, relu: bool = False) -> fx.Node:
        x, other = self._run(pending.x), pending.other
        if pending.norm is None:
            assert pending.convolution is not None
            pair = self.graph.call_module(pending.convolution[0], (x, pending.halo))
        else:
            convolution = None if pending.convolution is None else pending.convolution[1]
            part = self._part(ConvNorm(convolution, pending.norm, pending.halo, relu))
            pair = self.graph.call_module(part, (x,) if other is None else (x, self._run(other)))
        out = self.graph.call_function(blocked.first, (pair,))
        if not self._switched:  # from here on, readers of the input read what the convolution hands on (`ops.Convolve`)
            pending.x.node = self.graph.call_function(blocked.second, (pair,))
        return out

    def _in_blocks(self, node: fx.Node, layer: SparseConv2d) -> _Value:
        value = self.values[node]
        if not value.blocked:
            assert value.node is not None
            part = self._part(ToBlocks(layer, self._halo(node)))
            return _Value(self.graph.call_module(part, (value.node,)), True)
        return value

    def _plain(self, node: fx.Node) -> fx.Node:
        """The node as a tensor."""
        value = self.values[node]
        if not value.blocked:
            assert value.node is not None
            return value.node
        if value.images is not None:
            return value.images
        images = self.graph.call_function(blocked.to_images, (self._run(value),))
        if not self._switched:
            value.images = images
        return images
