"""Which rule each operation of a graph follows. Whatever is not known here is left whole, never guessed."""

import copy
import operator
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from skeletal.compaction import reshaping
from skeletal.compaction.rules import Added, Gather, Join, Map, Norm, Product, Rule
from skeletal.compaction.tracer import drops_paths

_ADDS = {operator.add, operator.iadd, operator.sub, operator.isub, torch.add, torch.sub, "add", "add_", "sub", "sub_"}
_MULTIPLIES = {operator.mul, operator.imul, torch.mul, "mul", "mul_"}
_DIVIDES = {operator.truediv, operator.itruediv, torch.div, "div", "div_"}
_CONVOLUTIONS = {nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d}
_BATCH_NORMS = {nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm}
_INSTANCE_NORMS: dict[Any, int] = {nn.InstanceNorm1d: 3, nn.InstanceNorm2d: 4, nn.InstanceNorm3d: 5}
# Functions of one number, whose value and slope at 0 are found by asking them.
_ACTIVATIONS = {
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardsigmoid,
    nn.Hardtanh, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign, nn.LogSigmoid, nn.Threshold,
    F.relu, F.relu6, F.leaky_relu, F.elu, F.celu, F.selu, F.gelu, F.silu, F.mish, F.hardswish, F.hardsigmoid,
    F.hardtanh, F.sigmoid, F.tanh, F.softplus, F.softsign, F.logsigmoid, F.threshold,
    torch.relu, torch.relu_, torch.sigmoid, torch.tanh, torch.abs, torch.neg, torch.square, operator.neg,
    torch.clamp, *_DIVIDES,
    "relu", "relu_", "sigmoid", "tanh", "abs", "neg", "square", "clamp", "contiguous", "clone",
}  # fmt: skip
# Their slope at 0 is random, or 1: nothing to ask.
_PASSES = {nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, F.dropout, F.dropout2d, F.dropout3d}
_POOLS = {
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
    nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReplicationPad1d,
    nn.ReplicationPad2d,
    F.max_pool1d, F.max_pool2d, F.max_pool3d, torch.max_pool1d, torch.max_pool2d, torch.max_pool3d,
    F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d,
}  # fmt: skip
_RESIZES = {nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d, F.interpolate}
_NAMELESS = {F.max_pool1d: 1, F.max_pool2d: 2, F.max_pool3d: 3}  # dispatchers, all called "fn"
_REDUCES = {torch.mean, torch.sum, torch.amax, torch.amin, "mean", "sum", "amax", "amin"}
_CONCATENATES = {torch.cat, torch.concat, torch.concatenate}


@dataclass
class Known:
    """What is known of a graph."""

    rules: dict[fx.Node, Rule] = field(default_factory=dict)
    holds: dict[fx.Node, str] = field(default_factory=dict)
    """nodes that need all channels of what they read, and why; "" where that goes without saying"""
    rewrites: list[reshaping.Rewrite] = field(default_factory=list)
    axis: dict[fx.Node, int] = field(default_factory=dict)
    """where tensors that follow rules have their channels"""


def classify(module: fx.GraphModule, mask: Mapping[int, Tensor]) -> Known:
    """Find a rule for each node.

    Args:
        module: traced, with shapes (see `trace`).
        mask: bool, by the id of the parameter.

    """
    known, alone = Known(), _Alone(module)
    harmless: list[fx.Node] = []
    for node in module.graph.nodes:
        if node.op in ("placeholder", "get_attr"):
            continue
        if node.op == "output":
            known.holds[node] = ""
            continue
        rule: Rule | str | None = None
        if "whole" in node.meta:
            rule = f"{node.target} {node.meta['whole']}: kept whole"
        elif node.op == "call_module":
            rule = _of_module(node, module.get_submodule(node.target), known, mask, alone)
        elif "shape" in node.meta:
            rule = _of_function(node, known) or reshaping.rule_of(node, known.axis, known.rewrites)
        elif reshaping.is_harmless(node, known.axis):
            harmless.append(node)
            continue
        if rule is None or isinstance(rule, str):
            channels = any(source in known.axis for source in node.all_input_nodes)
            known.holds[node] = rule or (f"{_name(node, module)} is not known" if channels else "")
        else:
            known.rules[node], known.axis[node] = rule, rule.axis
    for node in harmless:
        if strange := reshaping.strange_views(node, known.rules, known.axis):
            known.holds[node] = f"{_name(strange[0], module)} is told the number of channels"
    return known


class _Alone:
    """Which modules are used once, by nobody else, and as they stand."""

    def __init__(self, module: fx.GraphModule) -> None:
        nodes = module.graph.nodes
        self._calls = Counter(
            id(part)
            for node in nodes
            if node.op == "call_module"
            for part in module.get_submodule(node.target).modules()  # a leaf calls its own parts
        )
        self._owners = Counter(id(p) for part in module.modules() for p in part._parameters.values() if p is not None)
        for node in nodes:
            if node.op == "get_attr":
                self._owners[id(operator.attrgetter(node.target)(module))] += 1

    def why_not(self, module: nn.Module) -> str:
        tensors = [*module.parameters(), *module.buffers()]
        if tensors and self._calls[id(module)] > 1:
            return "is called more than once"
        if any(self._owners[id(tensor)] > 1 for tensor in tensors):
            return "shares its parameters"
        if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
            return "has hooks"
        return ""


def _name(node: fx.Node, module: fx.GraphModule) -> str:
    if node.op == "call_module":
        return f"{node.target} ({type(module.get_submodule(str(node.target))).__name__})"
    return f"{node.name} ({node.target if isinstance(node.target, str) else getattr(node.target, '__name__', '?')})"


def _of_module(
    node: fx.Node, module: nn.Module, known: Known, mask: Mapping[int, Tensor], alone: _Alone
) -> Rule | str | None:
    kind: Any = type(module)
    sources = node.all_input_nodes
    if len(sources) != 1 or node.args != (sources[0],) or node.kwargs or "shape" not in node.meta:
        return None
    source = sources[0]
    if "shape" not in source.meta:
        return None
    if reason := alone.why_not(module):
        return f"{node.target} {reason}"
    if kind in _CONVOLUTIONS or kind is nn.Linear:
        return _product(node, module, known, mask)
    axis, dims = known.axis.get(source), len(source.meta["shape"])
    if axis is None:
        return None
    if kind in _BATCH_NORMS or _INSTANCE_NORMS.get(kind) == dims:
        return _norm(node, module, mask) if axis == 1 else None
    if kind is nn.PReLU:
        return Map((source,), axis, target=str(node.target)) if axis == 1 else None
    if kind in _ACTIVATIONS:
        asked = copy.deepcopy(module)
        asked.training = False
        return Map((source,), axis, *_at_zero(asked))
    if kind in _PASSES or drops_paths(module):
        return Map((source,), axis)
    if (kind in _POOLS and dims == int(kind.__name__[-2]) + 2) or kind in _RESIZES:
        return Map((source,), axis) if axis == 1 else None
    if kind is nn.Flatten:
        return reshaping.flattened(node, known.axis)
    return None


def _product(node: fx.Node, module: Any, known: Known, mask: Mapping[int, Tensor]) -> Product | None:
    source = node.all_input_nodes[0]
    dims, linear = len(source.meta["shape"]), isinstance(module, nn.Linear)
    axis = dims - 1 if linear else 1
    if dims < 2 or known.axis.get(source, axis) != axis or not (linear or dims == len(module.kernel_size) + 2):
        return None
    groups, transposed = (1, False) if linear else (module.groups, module.transposed)
    keep = mask.get(id(module.weight))
    keep = torch.ones(module.weight.shape, dtype=torch.bool) if keep is None else keep.cpu()
    pairs = keep.flatten(2).any(2) if keep.dim() > 2 else keep
    blocks = pairs.unflatten(0, (groups, -1))  # per group (outputs, inputs), or the other way round
    if transposed:
        blocks = blocks.transpose(1, 2)
    bias = module.bias
    added = Added(f"{node.target}.bias", bias, mask.get(id(bias)), groups * blocks.shape[1])
    return Product((source,), axis, str(node.target), torch.block_diag(*blocks).bool(), added, groups, transposed)


def _norm(node: fx.Node, module: Any, mask: Mapping[int, Tensor]) -> Norm:
    channels = module.num_features
    scaled = mask.get(id(module.weight)) if module.affine else None
    mean = module.running_mean
    everywhere = torch.ones(channels, dtype=torch.bool)
    bias = module.bias if module.affine else None
    return Norm(
        (node.all_input_nodes[0],),
        1,
        str(node.target),
        everywhere if scaled is None else scaled.cpu(),
        everywhere if mean is None else mean.detach().eq(0).cpu(),
        Added(f"{node.target}.bias", bias, mask.get(id(bias)), channels),
    )


def _of_function(node: fx.Node, known: Known) -> Rule | None:
    target: Any = node.target
    tensors = [arg for arg in node.args if isinstance(arg, fx.Node)]
    if target in _CONCATENATES:
        return _concatenated(node, known.axis)
    axis = known.axis.get(tensors[0]) if tensors else None
    if scaled := _scaled(node, known.axis):
        return scaled
    if target in _ADDS | _MULTIPLIES and len(tensors) == len(node.args) == 2 and node.kwargs.keys() <= {"alpha"}:
        return _joined(node, known.axis, multiplies=target in _MULTIPLIES)
    if axis is None or len(tensors) != 1:
        return None
    source = tensors[0]
    before, after = source.meta["shape"], node.meta["shape"]
    if target in _PASSES:
        return Map((source,), axis)
    if target in _RESIZES and all("shape" not in other.meta for other in node.all_input_nodes if other is not source):
        return Map((source,), axis) if axis == 1 else None
    if len(node.all_input_nodes) != 1:
        return None
    if target in _ACTIVATIONS | _ADDS | _MULTIPLIES and before == after:
        return Map((source,), axis, *_at_zero(lambda zero: _call(node, source, zero), len(before)))
    if target in _POOLS:
        dims = _NAMELESS.get(target) or int(target.__name__[-2])
        return Map((source,), axis) if axis == 1 and len(before) == dims + 2 else None
    if target is F.pad:
        sizes: Any = node.args[1] if len(node.args) == 2 else None
        mode, value = node.kwargs.get("mode", "constant"), node.kwargs.get("value")
        plain = sizes is not None and (mode != "constant" or not value) and len(sizes) <= 2 * (len(before) - 2)
        return Map((source,), axis) if axis == 1 and plain else None
    if target in _REDUCES:
        return _reduced(node, source, axis)
    return None


def _call(node: fx.Node, source: fx.Node, value: Tensor) -> Tensor:
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda found: value if found is source else found)
    target: Any = node.target
    return getattr(value, target)(*args[1:], **kwargs) if node.op == "call_method" else target(*args, **kwargs)


def _at_zero(function: Callable[[Tensor], Tensor], dims: int = 1) -> tuple[bool, bool]:
    """Whether f(0) = 0, and whether f'(0) = 0, too."""
    with torch.enable_grad():
        zero = torch.zeros([1] * dims, requires_grad=True)
        value = function(zero * 1)  # not a leaf, so that it may be changed in place
        slope = torch.autograd.grad(value, zero)[0] if value.requires_grad else zero
    keeps = value.item() == 0
    return keeps, keeps and slope.item() == 0


def _scaled(node: fx.Node, axes: Mapping[fx.Node, int]) -> Map | None:
    """A tensor times, or divided by, a number that the graph computes or a parameter of one number."""
    if len(node.args) != 2 or node.target not in _MULTIPLIES | _DIVIDES:
        return None
    for source, number in (node.args, node.args[::-1]):
        if not isinstance(source, fx.Node) or not isinstance(number, fx.Node):
            return None
        if source in axes and number.meta.get("shape", ()) == ():
            return Map((source,), axes[source])
        if node.target in _DIVIDES:
            break
    return None


def _joined(node: fx.Node, axes: Mapping[fx.Node, int], *, multiplies: bool) -> Join | None:
    one, two = node.args
    if not isinstance(one, fx.Node) or not isinstance(two, fx.Node) or not (one in axes or two in axes):
        return None
    shape, other = one.meta.get("shape", ()), two.meta.get("shape", ())
    axis = axes.get(one, axes.get(two))
    if axis is None or axes.get(two, axis) != axis or len(shape) != len(other) or shape[axis] != other[axis]:
        return None
    return Join((one, two), axis, multiplies)


def _concatenated(node: fx.Node, axes: Mapping[fx.Node, int]) -> Gather | None:
    parts: Any = node.args[0] if node.args else node.kwargs.get("tensors")
    if not isinstance(parts, list | tuple) or not all(isinstance(part, fx.Node) for part in parts):
        return None
    dim: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", node.kwargs.get("axis", 0))
    if not isinstance(dim, int) or not any(part in axes for part in parts):
        return None
    axis = dim % len(node.meta["shape"])
    if any(axes.get(part, axis) != axis for part in parts):
        return None
    return Gather(tuple(parts), axis, torch.arange(sum(part.meta["shape"][axis] for part in parts)))


def _reduced(node: fx.Node, source: fx.Node, axis: int) -> Map | None:
    dim: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    dims = [dim] if isinstance(dim, int) else dim
    if not isinstance(dims, list | tuple) or not dims or not all(isinstance(d, int) for d in dims):
        return None
    size = len(source.meta["shape"])
    gone = {d % size for d in dims}
    if axis in gone or 0 in gone:
        return None
    kept = len(node.meta["shape"]) == size
    return Map((source,), axis if kept else axis - sum(d < axis for d in gone))
