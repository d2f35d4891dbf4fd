"""The modules of a traced network, run by our own code."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from skeletal.compaction.tracing.network import Traced

if TYPE_CHECKING:  # loaded where a check has found that kernels work
    from skeletal.engine.lower import Lowered


class Network(Traced):
    """The modules of a network under their own names, run by our own code.

    Modules with hooks are called as they are; if a hook is registered or removed later, the code is made anew.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__()
        self.training = module.training
        self._parameters, self._buffers = module._parameters, module._buffers
        self._modules = dict(module._modules)
        self.graph = module.graph
        self.code = ""
        self._hooks: list[dict[int, Any]] = []
        self._hooked: list[bool] = []
        self._function: Any = None
        self.take_over(module)

    def install(self, lowered: "Lowered") -> None:
        """Take over code, with the modules it needs beside the network's own."""
        from skeletal.engine.lower import PART

        for name in [name for name in self._modules if name.startswith(PART)]:
            del self._modules[name]
        self._hooks = [
            hooks
            for module in self.modules()
            if module is not self
            for hooks in (
                module._forward_hooks,
                module._forward_pre_hooks,
                module._backward_hooks,
                module._backward_pre_hooks,
            )
        ]
        self._hooked = [bool(hooks) for hooks in self._hooks]
        for name, part in lowered.parts.items():
            self.add_module(name, part.train(self.training))
        self._function, self.code = lowered.forward, lowered.code

    def forward(self, *arguments: Any, **options: Any) -> Any:
        """What the original network takes and returns."""
        if [bool(hooks) for hooks in self._hooks] != self._hooked:
            from skeletal.engine.lower import lower

            self.install(lower(self, self.graph))
        return self._function(self, *arguments, **options)


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


def channels_last(argument: Any) -> Any:
    """The same, in channels-last memory order where it is a batch of images."""
    if isinstance(argument, Tensor) and argument.dim() == 4:
        return argument.contiguous(memory_format=torch.channels_last)
    return argument
