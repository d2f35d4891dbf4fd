"""Weight norm divides the weights of a unit by their length, which must not become 0."""

from collections.abc import Iterable

from torch import Tensor, nn
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.weight_norm import WeightNorm

from skeletal.core.errors import CollapsedError
from skeletal.core.model.tensors import Tensors


def normed(model: nn.Module, weights: Iterable[str]) -> dict[str, int]:
    """The weights that weight norm divides by their length: for each its dimension of units, -1 for one length of all.

    Of both kinds: `torch.nn.utils.parametrizations.weight_norm`, and the older `torch.nn.utils.weight_norm`.
    """
    dims: dict[int, int] = {}
    for module in model.modules():
        if isinstance(module, nn.utils.parametrize.ParametrizationList) and isinstance(module[0], _WeightNorm):
            dims[id(module.original1)] = module[0].dim
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, WeightNorm):
                dims[id(module._parameters.get(f"{hook.name}_v"))] = hook.dim
    named = dict(model.named_parameters())
    return {name: dims[id(named[name])] for name in weights if id(named[name]) in dims}


def refuse_empty(norms: dict[str, int], mask: Tensors, where: str) -> None:
    """Refuse masks that leave a unit of a normed weight without any: its length is 0, and the network gives NaN.

    Raises:
        CollapsedError: names the weight and the unit.

    """
    for name, dim in norms.items():
        if (unit := _first_empty(mask[name], dim)) is not None:
            raise CollapsedError(
                f"collapsed at {where}: no weight is left in {unit} of {name} {tuple(mask[name].shape)}, and weight"
                " norm divides by their length, which is 0. Take it off first, which changes no output"
                " (torch.nn.utils.parametrize.remove_parametrizations, or the older remove_weight_norm), or keep more"
            )


def _first_empty(keep: Tensor, dim: int) -> str | None:
    if dim == -1:
        return None if keep.any() else "all"
    left = keep.movedim(dim, 0).flatten(1).any(1)
    return None if left.all() else f"unit {int(left.logical_not().nonzero()[0])}"
