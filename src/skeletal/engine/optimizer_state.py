"""What an optimizer remembers of a network's weights, carried over between its dense and its compiled form."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from skeletal.compaction.slices import cut, paste
from skeletal.core.masks.held import begins, has_history

States = Mapping[str, Mapping[str, Any]]
"""by parameter name and kind: momentum, moments, counts"""
_OF_MATRICES = {"Adafactor", "Muon"}
"""optimizers, torch's and others of these names, that remember or do something else for matrices than for vectors"""


def carry_over(optimizer: Optimizer, before: nn.Module, after: nn.Module) -> None:
    """Let an optimizer continue with another form of the same network, weight by weight.

    Groups, their settings and schedulers stay, and so do step counts and the parameters of other modules. Momentum and
    moments of weights that `before` has no place for, pruned or without effect, begin anew; those that `after` has no
    place for are lost. A parameter that `after` does not have at all, as the forward pass does not use it, stays in its
    group with all that is remembered of it, and `after.state_dict()` has its value of then.

    Args:
        optimizer: holds the parameters of `before`; from now on those of `after`.
        before: a module, or what `skeletal.compile` has made of it.
        after: likewise; one of the two is the module itself.

    Raises:
        TypeError: the optimizer keeps something else than numbers for each entry of a weight. It is as before.

    """
    old, new = dict(before.named_parameters()), dict(after.named_parameters())
    first = _first_names(before if _layers(after) is not None else after)
    there = {first[name] for name in new}
    elsewhere = {name: old.pop(name) for name in [*old] if first[name] not in there}
    groups = {id(weight): group for group in optimizer.param_groups for weight in group["params"]}
    numbers = {first[name]: id(weight) for name, weight in old.items() if id(weight) in groups}
    successors: dict[int, list[nn.Parameter]] = {id(weight): [] for weight in old.values()}
    for name, weight in new.items():
        if first[name] in numbers:
            successors[numbers[first[name]]].append(weight)
    _refuse_others(optimizer, [*old.values()], successors)
    states = {name: optimizer.state[weight] for name, weight in old.items() if weight in optimizer.state}
    settings = {name: groups.get(id(weight), {}) for name, weight in old.items()}
    dense = {first[name]: entries for name, entries in to_dense(before, states, settings).items()}
    own = from_dense(after, {name: dense[first[name]] for name in new if first[name] in dense})
    for group in optimizer.param_groups:
        group["params"] = [then for weight in group["params"] for then in successors.get(id(weight), [weight])]
    for weight in old.values():
        optimizer.state.pop(weight, None)
    for name, entries in own.items():
        optimizer.state[new[name]] = entries
    if _layers(after) is not None:
        compiled: Any = after
        compiled._elsewhere = elsewhere


def _refuse_others(
    optimizer: Optimizer, weights: Sequence[nn.Parameter], successors: Mapping[int, list[nn.Parameter]]
) -> None:
    """Only what an optimizer remembers of each entry by itself can follow that entry."""
    kinds = {
        kind
        for weight in weights
        for kind, value in optimizer.state.get(weight, {}).items()
        if isinstance(value, list | tuple | dict)
        or (isinstance(value, Tensor) and value.shape != weight.shape and value.numel() != 1)
    }
    of_matrices = not _OF_MATRICES.isdisjoint(kind.__name__ for kind in type(optimizer).__mro__)
    kept = ", ".join(sorted(map(repr, kinds)))
    if has_history(optimizer):
        kept = "a list of parameters of its own"
    elif of_matrices and any(weight.dim() != then.dim() for weight in weights for then in successors[id(weight)]):
        kept = kept or "what depends on a weight's rows and columns"
    if kept:
        raise TypeError(
            f"{type(optimizer).__name__} cannot go on with other parameters, as it keeps {kept}, not a number for each"
            " entry of a weight: make a new one of them"
        )


def to_dense(
    network: nn.Module, states: States, settings: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, dict[str, Any]]:
    """States of a network's parameters, with the shapes that those have in the original network.

    What has the shape of its parameter becomes dense; the rest stays. For an original network nothing changes.

    Args:
        network: original or compiled.
        states: of its parameters.
        settings: of each parameter's group, which say what begins where a compiled network has nothing: 0 without them.

    """
    places, weights = _places(network), dict(network.named_parameters())
    found = {}
    for name, entries in states.items():
        place, group = places[name], (settings or {}).get(name, {})
        found[name] = _each(
            entries, weights[name].shape, lambda kind, value, p=place, g=group: p.dense(value, begins(kind, g))
        )
    return found


def from_dense(network: nn.Module, states: States) -> dict[str, dict[str, Any]]:
    """The inverse of `to_dense`, as far as the network has a place for it."""
    places = _places(network)
    return {
        name: _each(entries, places[name].shape, lambda _, value, place=places[name]: place.own(value))
        for name, entries in states.items()
    }


class _Place:
    """Where a parameter's entries lie in that of the original network."""

    def __init__(self, shape: torch.Size, indices: tuple[Tensor | None, ...] | None = None, layer: Any = None) -> None:
        self.shape, self._indices, self._layer = shape, indices, layer

    def dense(self, value: Tensor, beside: float) -> Tensor:
        """The value in its place, and a number in all others."""
        if self._layer is not None:  # kept values, of what is left of the weight
            whole = torch.full(torch.Size(self._layer.shape), beside, dtype=value.dtype, device="cpu")
            value = whole.flatten().index_copy(0, self._layer.positions, value).view(self._layer.shape)
        return value if self._indices is None else paste(value, self._indices, value.new_full(self.shape, beside))

    def own(self, value: Tensor) -> Tensor:
        left = value if self._indices is None else cut(value, self._indices)
        return left if self._layer is None else left.flatten()[self._layer.positions]


def _layers(network: Any) -> dict[str, Any] | None:
    """The layers over kept weights of a compiled network; None of any other."""
    return network.sparse_layers() if hasattr(network, "sparse_layers") else None


def _places(network: Any) -> dict[str, _Place]:
    layers = _layers(network)
    if layers is None:
        return {name: _Place(weight.shape) for name, weight in network.named_parameters(remove_duplicate=False)}
    sparse = {f"{name}.weight": layer for name, layer in layers.items()}
    slices, blueprint = network._original.slices, network._original.blueprint
    return {
        name: _Place(weight.shape, slices[name], sparse.get(name))
        for name, weight in blueprint.named_parameters(remove_duplicate=False)
    }


def _each(entries: Mapping[str, Any], shape: torch.Size, change: Callable[[str, Tensor], Tensor]) -> dict[str, Any]:
    return {
        kind: change(kind, value) if isinstance(value, Tensor) and value.shape == shape else value
        for kind, value in entries.items()
    }


def _first_names(module: nn.Module) -> dict[str, str]:
    """Every name of a parameter, and the first name of the same one."""
    first: dict[int, str] = {}
    named = module.named_parameters(remove_duplicate=False)
    return {name: first.setdefault(id(weight), name) for name, weight in named}
