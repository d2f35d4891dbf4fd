"""Weight decay of a compiled network, whose weights are vectors, which recipes take for biases."""

import warnings
import weakref
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook


def param_groups(network: Any, weight_decay: float, no_decay: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """See `Compiled.param_groups`."""
    dense = {f"{name}.weight": len(layer.shape) for name, layer in network.sparse_layers().items()}
    decayed, others = [], []
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            plain = dense.get(name, parameter.dim()) <= 1 or name.endswith(".bias") or name in no_decay
            (others if plain else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def warn_of_lost_decay(vectors: list[nn.Parameter]) -> None:
    """Warn at the first step of an optimizer that decays other parameters but none of a network's kept weights.

    That is what comes of recipes such as "no weight decay where `ndim <= 1`", as timm's.
    """
    ours = [weakref.ref(vector) for vector in vectors]
    looked = False

    def look(optimizer: Optimizer, *_: Any) -> None:
        nonlocal looked
        if looked:
            return
        there = {id(vector) for ref in ours if (vector := ref()) is not None and vector.numel()}
        decays = [
            (id(parameter) in there, bool(group.get("weight_decay")))
            for group in optimizer.param_groups
            for parameter in group["params"]
        ]
        if not any(mine for mine, _ in decays):
            return
        looked = True
        grouped = len({bool(group.get("weight_decay")) for group in optimizer.param_groups}) > 1
        if grouped and not any(mine and decay for mine, decay in decays):
            warnings.warn(
                "this optimizer has weight decay for some parameters, but for none of the compiled network's kept"
                " weights, which are vectors: a recipe took them for biases. Use `fast.param_groups(weight_decay)`",
                stacklevel=4,
            )

    hook = register_optimizer_step_pre_hook(look)
    for vector in vectors[:1]:
        weakref.finalize(vector, hook.remove)
