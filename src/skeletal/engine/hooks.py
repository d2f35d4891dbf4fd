"""Hooks on calls of a network and of its parts, handed on between forms of the same network."""

from collections.abc import Mapping
from typing import Any

from torch import nn

_KINDS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks",
)  # fmt: skip

Hooks = tuple[dict[str, dict[int, Any]], bool | None]
"""of one module, by kind and number, in their order; and whether those of the backward pass are full ones"""


def hooks_of(module: nn.Module) -> Hooks:
    """All that a module has."""
    return {kind: dict(getattr(module, kind)) for kind in _KINDS}, module._is_full_backward_hook


def hooks_since(network: nn.Module, before: nn.Module) -> dict[str, Hooks]:
    """The hooks of each part that has others than the part of the same name had before.

    Those that both have are None: they come with the other network, and may refer to its parts.
    """
    others, found = dict(before.named_modules()), {}
    for name, part in network.named_modules():
        now, full = hooks_of(part)
        then = hooks_of(others[name])[0] if name in others else now
        if any(now[kind].keys() != then[kind].keys() for kind in _KINDS):
            new = {kind: {i: None if i in then[kind] else hook for i, hook in now[kind].items()} for kind in _KINDS}
            found[name] = new, full
    return found


def take_hooks(network: nn.Module, hooks: Mapping[str, Hooks]) -> None:
    """Give a network's parts the hooks that `hooks_since` has found."""
    for name, (new, full) in hooks.items():
        part = network.get_submodule(name)
        before, _ = hooks_of(part)
        _have(part, {kind: {i: before[kind].get(i) if h is None else h for i, h in new[kind].items()} for kind in new})
        part._is_full_backward_hook = full


def put_around(module: nn.Module, hooks: Hooks) -> None:
    """Give a module the hooks of one that stood around it, in addition to its own."""
    outer, full = hooks
    inner, own = hooks_of(module)
    _have(module, {k: outer[k] | inner[k] if "_pre_" in k else inner[k] | outer[k] for k in _KINDS})
    module._is_full_backward_hook = own if full is None else full


def _have(module: nn.Module, hooks: Mapping[str, dict[int, Any]]) -> None:
    for kind, now in hooks.items():
        registered = getattr(module, kind)  # itself, as handles refer to it
        registered.clear()
        registered.update(now)
