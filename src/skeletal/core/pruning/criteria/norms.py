"""Norms that only scale, as paths need them: what divides by the size of its input is no sum of paths."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_OF_CHANNELS = {F.group_norm: 2, torch.group_norm: 2, F.instance_norm: 3, torch.instance_norm: 1, F.batch_norm: 3}
_OF_FEATURES = {F.layer_norm: 2, torch.layer_norm: 2, F.rms_norm: 2, torch.rms_norm: 2}
"""at which of its arguments a norm has its scale"""


class Unnormalized(TorchFunctionMode):
    """Makes layer, group, instance and RMS norm, and batch norm without statistics, the identity but for their scale.

    Batch norm with statistics is that already, where these are 0 and 1.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        place = _OF_CHANNELS.get(func, _OF_FEATURES.get(func))
        if place is None or (func is F.batch_norm and args[1] is not None):
            return func(*args, **kwargs)
        x: Tensor = args[0]
        scale = args[place] if len(args) > place else kwargs.get("weight")
        if scale is None:
            return x.clone()
        return x * (scale if func in _OF_FEATURES else scale.view(-1, *[1] * (x.dim() - 2)))
