"""A tensor that can be read like any other, but not written to."""

from typing import Any

import torch
from torch import Tensor

WRITTEN_TO = (
    "the weight of a layer over kept weights is made of its kept values: write to `values`, or to the dense network and"
    " compile that"
)


class ReadOnly(Tensor):
    """Made by `tensor.as_subclass(ReadOnly)`. Views of it are read-only, too; results computed from it are plain."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function of torch.

        Raises:
            AttributeError: it writes, in place or to `out=`.

        """
        kwargs = kwargs or {}
        first = next(iter((*args, *kwargs.values())), None)
        written = first if _writes(func.__name__) else kwargs.get("out")
        if any(isinstance(tensor, cls) for tensor in (written if isinstance(written, list | tuple) else (written,))):
            raise AttributeError(WRITTEN_TO)
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **kwargs)
            if isinstance(first, cls) and isinstance(result, Tensor) and _share_memory(first, result):
                return result.as_subclass(cls)
        return result


def _writes(function: str) -> bool:
    if function in ("__set__", "__setitem__"):  # the former of `weight.data = `
        return True
    if function.startswith("__"):
        return function.startswith("__i") and function.strip("_") in _IN_PLACE
    return function.endswith("_") and function != "requires_grad_"


_IN_PLACE = {f"i{name}" for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul")} | {
    f"i{name}" for name in ("and", "or", "xor", "lshift", "rshift")
}


def _share_memory(one: Tensor, two: Tensor) -> bool:
    return two.layout == torch.strided and one.untyped_storage().data_ptr() == two.untyped_storage().data_ptr() != 0
