"""The modules of a traced network, run by our own code."""

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.module import _has_any_global_hook

from skeletal.compaction.tracing.network import Traced
from skeletal.compaction.tracing.tracer import has_hooks, has_own_forward

if TYPE_CHECKING:  # loaded where a check has found that kernels work
    from skeletal.engine.lower import Lowered


REPLACED = (
    "a compiled network runs on tables that were made for its own parts: replace them in the model, and compile that;"
    " a part that comes before or after belongs in a module that holds both"
)


class Network(Traced):
    """The modules of a network under their own names, run by our own code.

    Modules with hooks, or a forward pass of their own, are called as they are; where either comes or goes later, the
    code is made anew.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__()
        self.training = module.training
        self._parameters, self._buffers = module._parameters, module._buffers
        self._modules = dict(module._modules)
        self.graph = module.graph
        inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
        self._dims = {str(node.target): len(node.meta["shape"]) if "shape" in node.meta else None for node in inputs}
        self.code = ""
        self._layers: list[nn.Module] = []
        self._special: list[bool] = []
        self._bound: list[tuple[dict[str, Any], str, nn.Module, str]] = []
        """where the modules lie that the code was made for: their owner's parts, their name there, and the full name"""
        self._function: Any = None
        self._plain: Any = None
        """what the graph says, on tensors"""
        self.take_over(module)

    def install(self, lowered: "Lowered") -> None:
        """Take over code, with the modules it needs beside the network's own."""
        from skeletal.engine.lower import PART

        for name in [name for name in self._modules if name.startswith(PART)]:
            del self._modules[name]
        self._layers = [module for module in self.modules() if module is not self]
        self._special = self._which_are_special()
        self._bound = [place for name in sorted(lowered.bound) for place in self._path(name)]
        for name, part in lowered.parts.items():
            self.add_module(name, part.train(self.training))
        self._function, self.code, self._plain = lowered.forward, lowered.code, None

    def _which_are_special(self) -> list[bool]:
        """Whether a call of each module does more, or something else, than its class says; the last for all of them."""
        return [*(has_hooks(layer) or has_own_forward(layer) for layer in self._layers), bool(_has_any_global_hook())]

    def _path(self, name: str) -> Iterator[tuple[dict[str, Any], str, nn.Module, str]]:
        owner: nn.Module = self
        for leaf in name.split("."):
            parts = owner._modules  # not the owner, which may be this network: it would refer to itself
            owner = owner.get_submodule(leaf)
            yield parts, leaf, owner, name

    def forward(self, *arguments: Any, **options: Any) -> Any:
        """What the original network takes and returns.

        Raises:
            RuntimeError: a module that its code was made for is no longer there.

        """
        for parts, leaf, module, name in self._bound:
            if parts.get(leaf) is not module:
                raise RuntimeError(f"`{name}` was replaced, but {REPLACED}")
        if self._which_are_special() != self._special:
            from skeletal.engine.lower import lower

            self.install(lower(self, self.graph))
        if self._as_planned(arguments, options):
            return self._function(self, *arguments, **options)
        if self._plain is None:
            self._plain = type(fx.GraphModule(self, copy.deepcopy(self.graph))).forward
        return self._plain(self, *arguments, **options)

    def _as_planned(self, arguments: tuple[Any, ...], options: dict[str, Any]) -> bool:
        """Whether tensors have as many dimensions as for the example, such as images with that of a batch."""
        taken = {**dict(zip(self._dims, arguments, strict=False)), **options}
        return all(
            self._dims.get(name) in (None, value.dim()) for name, value in taken.items() if isinstance(value, Tensor)
        )


def input_shapes(graph: fx.Graph) -> dict[str, tuple[int, ...]]:
    """The shape of what each sparse layer reads."""
    found = {}
    for node in graph.nodes:
        source = node.args[0] if node.args else None
        if node.op == "call_module" and isinstance(source, fx.Node) and "shape" in source.meta:
            found[str(node.target)] = tuple(source.meta["shape"])
    return found


def under_its_name(network: nn.Module | None, name: str) -> Any:
    """A child, a parameter or a buffer of a network by its name there; None where it has none."""
    kinds = () if network is None else (network._modules, network._parameters, network._buffers)
    return next((kind[name] for kind in kinds if name in kind), None)


def refuse_exporters() -> None:
    """Our kernels cannot be exported by torch.export, torch.onnx or torch.jit.

    Raises:
        RuntimeError: one of them is at work; says what to export instead.

    """
    if torch.compiler.is_exporting() or torch.jit.is_tracing():
        raise RuntimeError(
            "a compiled network runs on kernels that no exporter can read: export"
            " skeletal.compact(fast.to_dense(), fast.mask, example).model, which computes the same"
        )


def refuse_transforms() -> None:
    """Our kernels are unknown to the transforms of torch.func: grad, vmap, jvp and their like.

    Raises:
        RuntimeError: one of them is at work; says what to transform instead.

    """
    if torch._C._are_functorch_transforms_active():
        raise RuntimeError(
            "torch.func's transforms (grad, vmap, ...) cannot see into the kernels of a compiled network: transform"
            " fast.to_dense(), which computes the same, or use fast(x).backward()"
        )


def channels_last(argument: Any) -> Any:
    """The same, in channels-last memory order where it is a batch of images."""
    if isinstance(argument, Tensor) and argument.dim() == 4:
        return argument.contiguous(memory_format=torch.channels_last)
    return argument
