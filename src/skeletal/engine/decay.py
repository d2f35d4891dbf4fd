"""Weight decay of a compiled network, whose weights are vectors, which recipes mistake for biases."""

import warnings
import weakref
from functools import cache
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


_unseen: list[list[weakref.ref[nn.Parameter]]] = []
"""the kept weights of each compiled network that no optimizer has stepped yet"""


def warn_of_lost_decay(vectors: list[nn.Parameter]) -> None:
    """Warn at the first step of an optimizer that has weight decay, but not for any of a network's kept weights.

    This happens with recipes such as "no weight decay where `ndim <= 1`", like timm's.
    """
    _hook_once()
    _unseen[:] = [network for network in _unseen if any(vector() is not None for vector in network)]
    _unseen.append([weakref.ref(vector) for vector in vectors if vector.numel()])


@cache
def _hook_once() -> None:
    """One hook on all optimizers, for all networks: it stays, and costs nothing while none is unseen."""
    register_optimizer_step_pre_hook(_look)


def _look(optimizer: Optimizer, *_: Any) -> None:
    if not _unseen:
        return
    decay = {id(p): float(group.get("weight_decay", 0)) for group in optimizer.param_groups for p in group["params"]}
    here, rest = [], []
    for network in _unseen:
        (here if any(id(vector()) in decay for vector in network) else rest).append(network)
    _unseen[:] = rest
    # A recipe's group for decay is empty where all of a network's weights are vectors.
    some = any(group.get("weight_decay") for group in optimizer.param_groups) and not all(decay.values())
    for network in here:
        if some and not any(decay.get(id(vector())) for vector in network):
            warnings.warn(
                "this optimizer has weight decay, but for none of the compiled network's kept weights, which are"
                " vectors: a recipe took them for biases. Use `fast.param_groups(weight_decay)`",
                stacklevel=4,
            )
