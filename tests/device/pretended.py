"""A device that is pretended: its tensors hold values on the CPU, and mix with tensors of the CPU as little as a GPU's.

It finds what no test on a CPU finds: a batch, an index, a mask or a generator that was left on the other device. It
knows nothing of streams, graphs, autocast and rounding. `with on():` makes it work; a process cannot get rid of it.
"""

from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "pretended"
aten = torch.ops.aten
COPIES = {aten.copy_.default, aten._to_copy.default}
INDEXING = {
    aten.index.Tensor, aten._unsafe_index.Tensor, aten.index_put.default, aten.index_put_.default,
    aten._index_put_impl_.default,
}  # fmt: skip


class Backend(_DummyBackendModule):
    """What torch asks of a device's module."""

    def get_amp_supported_dtype(self):
        return [torch.bfloat16]

    def get_rng_state(self, device=None):
        return torch.empty(0)

    def set_rng_state(self, state, device=None):
        pass

    def manual_seed(self, seed):
        pass


_setup_privateuseone_for_python_backend(NAME, Backend())
DEVICE = torch.device(NAME, 0)


class MixedError(RuntimeError):
    """An operation on tensors of two devices."""


class There(Tensor):
    """A tensor on the device."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, value):
        made = Tensor._make_wrapper_subclass(
            cls, value.size(), strides=value.stride(), storage_offset=value.storage_offset(), dtype=value.dtype,
            layout=value.layout, device=DEVICE,
        )  # fmt: skip
        made.value = value
        return made

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return call(function, args, kwargs or {})

    def __repr__(self):
        return f"There({self.value!r})"

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            copied = There(self.value.detach().clone())
            as_it_is = nn.Parameter if isinstance(self, nn.Parameter) else Tensor.requires_grad_
            memo[id(self)] = as_it_is(copied, self.requires_grad)
        return memo[id(self)]

    def __reduce_ex__(self, protocol):  # into files, from which it comes back on the CPU
        return self.value.detach().clone().__reduce_ex__(protocol)

    def tolist(self):
        return self.value.detach().tolist()


def is_there(device) -> bool:
    """Whether a device, or its name, is the pretended one."""
    return device is not None and torch.device(device).type == NAME


def call(function, args, kwargs):
    """An operation on the values, refused where a GPU refuses it."""
    leaves = tree_leaves((args, kwargs))
    theirs = [leaf for leaf in leaves if isinstance(leaf, There)]
    ours = [leaf for leaf in leaves if isinstance(leaf, Tensor) and not isinstance(leaf, There)]
    device = kwargs.get("device")
    stays = is_there(device) if device is not None else bool(theirs)
    if stays and any(isinstance(leaf, torch.Generator) for leaf in leaves):
        raise MixedError(f"{function}: a generator of the CPU draws for the device")
    if theirs and ours and function not in COPIES:
        _refuse_mixing(function, args, ours)
    on_cpu = {
        name: torch.device("cpu") if name == "device" and value is not None else value
        for name, value in kwargs.items()
        if name != "pin_memory"
    }
    inner_args, inner = tree_map(lambda leaf: leaf.value if isinstance(leaf, There) else leaf, (args, on_cpu))
    with _disable_current_modes():
        found = function(*inner_args, **inner)
    if not stays or function is aten.copy_.default:
        return args[0] if function is aten.copy_.default else found
    asked, given = function._schema.arguments, function._schema.returns
    written = [at for at, entry in enumerate(asked) if entry.alias_info and entry.alias_info.is_write]
    if written and isinstance(found, Tensor) and given[0].alias_info:  # in place: the same tensor
        return args[written[0]] if written[0] < len(args) else kwargs[asked[written[0]].name]
    return tree_map(lambda leaf: There(leaf) if isinstance(leaf, Tensor) else leaf, found)


def _refuse_mixing(function, args, ours):
    """As CUDA does, which takes indices and single numbers from the CPU."""
    if function in INDEXING:
        if not isinstance(args[0], There):
            raise MixedError(f"{function}: an index on the device into a tensor of the CPU")
        if len(args) > 2 and not isinstance(args[2], There) and args[2].dim():
            raise MixedError(f"{function}: values of the CPU into a tensor on the device")
    elif any(tensor.dim() for tensor in ours):
        shapes = [tuple(tensor.shape) for tensor in ours]
        raise MixedError(f"{function}: a tensor of the CPU, {shapes}, and the device's")


class _Calls(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        ask = is_there(kwargs.get("device")) or any(isinstance(leaf, There) for leaf in tree_leaves((args, kwargs)))
        return call(function, args, kwargs) if ask else function(*args, **kwargs)


_tensor, _to = torch.tensor, nn.Module.to


def _made(data, *, device=None, **options):
    return There(_tensor(data, **options)) if is_there(device) else _tensor(data, device=device, **options)


def _moved(self, *args, **options):
    """Parameters that are there stay what they are, as on a GPU."""
    asked = args[0] if len(args) == 1 and isinstance(args[0], str | torch.device) and not options else None
    there = all(isinstance(value, There) for value in [*self.parameters(), *self.buffers()])
    return self if is_there(asked) and there else _to(self, *args, **options)


@contextmanager
def on():
    """Let the device exist."""
    torch.tensor, nn.Module.to = _made, _moved
    try:
        with _Calls():
            yield DEVICE
    finally:
        torch.tensor, nn.Module.to = _tensor, _to
