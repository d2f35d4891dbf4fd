"""Max pools that let every input of a window through, as a question about paths needs."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_AVERAGE: dict[Callable[..., Any], Callable[..., Tensor]] = {
    functional.max_pool1d: functional.avg_pool1d,
    functional.max_pool2d: functional.avg_pool2d,
    functional.max_pool3d: functional.avg_pool3d,
    torch.max_pool1d: functional.avg_pool1d,
    torch.max_pool2d: functional.avg_pool2d,
    torch.max_pool3d: functional.avg_pool3d,
}
_ADAPTIVE: dict[Callable[..., Any], Callable[..., Tensor]] = {
    functional.adaptive_max_pool1d: functional.adaptive_avg_pool1d,
    functional.adaptive_max_pool2d: functional.adaptive_avg_pool2d,
    functional.adaptive_max_pool3d: functional.adaptive_avg_pool3d,
}


class AveragePools(TorchFunctionMode):
    """Max pools are average pools inside: what reaches any input of a window reaches its output.

    A maximum has a gradient at its winner alone. A weight whose channel seldom wins would be found in one draw of
    stand-ins in a thousand, so that how many weights lie on a path would depend on how many examples are drawn.
    Pools with gaps (dilation) and those asked where the winner is stay as they are.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _AVERAGE:
            return _averaged(func, *args, **kwargs)
        if func in _ADAPTIVE and not (kwargs.get("return_indices") or (len(args) > 2 and args[2])):
            return _ADAPTIVE[func](
                *args[:2], **{name: value for name, value in kwargs.items() if name != "return_indices"}
            )
        return func(*args, **kwargs)


def _averaged(
    func: Callable[..., Any],
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    gaps = dilation if isinstance(dilation, tuple | list) else (dilation,)
    if return_indices or any(gap != 1 for gap in gaps):
        indices = {"return_indices": True} if return_indices else {}
        return func(input, kernel_size, stride or kernel_size, padding, dilation, ceil_mode, **indices)
    return _AVERAGE[func](input, kernel_size, stride or None, padding, ceil_mode, False)  # padding counts for nothing
