"""Whether a mask and a model belong together, and whether the model has kept to the mask."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from skeletal.core.errors import MaskError
from skeletal.core.model.shards import whole
from skeletal.core.model.tensors import Tensors
from skeletal.core.model.weights import unwrap


def matching_parameters(mask: Tensors, model: nn.Module, called: str | None = None) -> dict[str, nn.Parameter]:
    """The model's parameters that a mask names.

    Args:
        mask: bool tensors by name.
        model: the network.
        called: its name in errors; by default its class.

    Raises:
        MaskError: a name the model does not have, another shape, or two masks for a weight that has two names.

    """
    model = unwrap(model)
    called = called or type(model).__name__
    parameters = dict(model.named_parameters(remove_duplicate=False))
    named: dict[int, str] = {}
    for name, keep in mask.items():
        if name not in parameters:
            raise MaskError(
                f"the mask has a layer {name!r} that {called} does not have:"
                f" it belongs to another model (this one has {', '.join(list(parameters)[:4])}, ...)"
            )
        if parameters[name].shape != keep.shape:
            raise MaskError(
                f"{name} is {tuple(parameters[name].shape)} in {called} but {tuple(keep.shape)}"
                " in the mask: it belongs to another model"
            )
        other = named.setdefault(id(parameters[name]), name)
        if other != name and not mask[other].equal(mask[name].to(mask[other])):
            raise MaskError(f"{other} and {name} are one weight of {called}, but have different masks")
    return {name: parameters[name] for name in mask}


def by_first_names(mask: Mapping[str, Tensor], model: nn.Module) -> Tensors:
    """The mask under the names that `named_parameters` gives: a tied weight has several.

    Raises:
        MaskError: as `matching_parameters`.

    """
    first = {id(weight): name for name, weight in unwrap(model).named_parameters()}
    parameters = matching_parameters({name: keep.detach() for name, keep in mask.items()}, model)
    return {first[id(parameters[name])]: keep for name, keep in mask.items()}


def fits(keep: Tensor | None, weight: Tensor | None) -> bool:
    """Whether both are there, in one shape."""
    return keep is not None and weight is not None and keep.shape == weight.shape


def check(mask: Tensors, model: nn.Module) -> None:
    """See `Mask.check`."""
    compiled: Any = unwrap(model)
    if hasattr(compiled, "sparse_layers"):  # a compiled network, whose weights are vectors of kept values
        model = compiled.to_dense()
    for name, weight in matching_parameters(mask, model).items():
        if weight.is_meta:
            raise MaskError(f"{name} is on the meta device and has no values to check: materialize the model first")
        values = whole(weight.detach())
        moved = values.ne(0) & ~mask[name].to(values.device)  # NaN counts as moved
        if moved.any():
            first = tuple(moved.nonzero()[0].tolist())
            raise MaskError(
                f"{name}: {int(moved.sum())} of {int((~mask[name]).sum())} pruned weights are not zero,"
                f" the first at {first} = {values[first].item():g}; attach the mask before training, and to every copy"
            )
