"""To and from `torch.nn.utils.prune`, which keeps `<weight>_orig` and a buffer `<weight>_mask` in each layer."""

from torch import nn
from torch.nn.utils import prune as torch_prune

from skeletal.core.errors import MaskError
from skeletal.core.masks.match import matching_parameters
from skeletal.core.model.tensors import Tensors
from skeletal.core.model.weights import unwrap


def to_torch(mask: Tensors, model: nn.Module) -> None:
    """Apply the mask with `torch.nn.utils.prune.custom_from_mask`; this renames the state_dict keys."""
    masks = {id(weight): mask[name].to(weight.device) for name, weight in matching_parameters(mask, model).items()}
    uses = [
        (module, leaf, masks[id(weight)])  # a tied weight has several
        for module in model.modules()
        for leaf, weight in module._parameters.items()
        if id(weight) in masks
    ]
    for module, leaf, keep in uses:
        torch_prune.custom_from_mask(module, leaf, keep)


def from_torch(model: nn.Module) -> Tensors:
    """The masks of a model that was pruned with `torch.nn.utils.prune`, under the weights' own names.

    Raises:
        MaskError: nothing in the model is pruned in this way.

    """
    model = unwrap(model)
    parameters = {name for name, _ in model.named_parameters()}
    masks = {
        name.removesuffix("_mask"): buffer.detach().bool().cpu()
        for name, buffer in model.named_buffers()
        if name.endswith("_mask") and name.removesuffix("_mask") + "_orig" in parameters
    }
    if not masks:
        raise MaskError(f"{type(model).__name__} has no layer pruned with torch.nn.utils.prune")
    return masks
