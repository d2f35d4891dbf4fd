"""Hold pruned weights at exactly zero, under any optimizer."""

import warnings
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from skeletal.core.errors import MaskError
from skeletal.core.model.shards import is_sharded, local, part_like, whole
from skeletal.core.model.tensors import Tensors
from skeletal.core.model.weights import unwrap


class Skeleton:
    """A model with its mask attached; `detach` lets go of the model and leaves the zeros where they are.

    Three hooks keep the promise, and `state_dict` keys stay the user's own. The gradient of a pruned weight
    is 0, so clipping, gradient norms and new optimizer state never see it. After each step of any optimizer, the
    pruned weights that it holds are reset to 0, because momentum from before the pruning would move them. They are
    also reset to 0 after `load_state_dict`. The model keeps the skeleton alive; the skeleton keeps nothing alive.
    A `deepcopy` of the model, or a pickled copy, carries no hooks: attach the mask to it, too.

    With FSDP2 (`fully_shard`), each rank holds its own part at zero: prune first, shard, then attach, on every rank.
    """

    def __init__(self, mask: Tensors, model: nn.Module, optimizer: Optimizer | None = None) -> None:
        if optimizer is not None and not isinstance(optimizer, Optimizer):
            raise TypeError(f"attach takes a torch.optim.Optimizer, not {type(optimizer).__name__}")
        model = unwrap(model)
        parameters = matching_parameters(mask, model)
        _let_go_of_earlier(parameters, mask, model)
        self._names, self._of = list(mask), type(model).__name__
        self._held = [_Held(parameters[name], keep) for name, keep in mask.items()]
        self.moving = False
        """whether something moves the mask while training; see `MaskUpdate`"""
        for held in self._held:
            held.zero_stale_gradient()
            if optimizer is not None:
                held.zero_state(optimizer)
        # The hook of all optimizers also covers those made later, and those inside a wrapper.
        me: weakref.ref[Any] = weakref.ref(self)
        self._hooks: list[Any] = [register_optimizer_step_post_hook(lambda used, *_: _after_step(me, used))]
        weakref.finalize(self, self._hooks[0].remove)
        ours = {id(weight): held for weight, held in zip(parameters.values(), self._held, strict=True)}
        for module in model.modules():  # every module that holds a weight, since each can be loaded by itself
            for leaf, weight in module._parameters.items():
                if (held := ours.get(id(weight))) is not None:
                    self._hooks.append(module.register_load_state_dict_post_hook(_AfterLoad(self, module, leaf, held)))

    def detach(self) -> None:
        """Remove every hook. Pruned weights stay zero until something moves them."""
        for held in self._held:
            held.let_go()
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    @property
    def mask(self) -> Tensors:
        """Which weights are kept now."""
        return {name: held.keep for name, held in zip(self._names, self._held, strict=True)}

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """The parameters that are held, by name.

        Raises:
            MaskError: the skeleton is detached, or its model is gone.

        """
        found = {name: held.weight() for name, held in zip(self._names, self._held, strict=True)}
        alive = {name: weight for name, weight in found.items() if weight is not None}
        if not self._hooks or len(alive) < len(found):
            raise MaskError("the skeleton holds no weights any more: it was detached, or its model is gone")
        return alive

    def move(self, mask: Mapping[str, Tensor], *optimizers: Optimizer) -> None:
        """Hold another mask from now on, between two steps.

        Weights that go are set to 0, weights that come start at 0, and the optimizers' memory of either
        (momentum, moments) is set to 0; everything else stays bit-identical.

        Args:
            mask: of the same names and shapes.
            optimizers: all that hold the weights.

        Raises:
            MaskError: names or shapes differ, or the model is gone.

        """
        weights = self.weights
        if wrong := [name for name in weights.keys() | mask.keys() if not _fits(mask.get(name), weights.get(name))]:
            raise MaskError(f"the new mask does not fit the attached one at {min(wrong)}: it belongs to another model")
        for name, held in zip(self._names, self._held, strict=True):
            held.move(mask[name].detach().to("cpu", torch.bool), optimizers)

    def keep_gradients(self, wanted: bool) -> None:
        """Record the gradients of all weights, pruned ones included, in every backward pass from now on; or stop."""
        for held in self._held:
            held.noting, held.noted = wanted, None

    @property
    def gradients(self) -> Tensors:
        """What was recorded since `keep_gradients(True)`, summed over backward passes; layers without are missing."""
        noted = {name: held.noted for name, held in zip(self._names, self._held, strict=True)}
        return {name: gradient for name, gradient in noted.items() if gradient is not None}

    def __repr__(self) -> str:
        mask = self.mask.values()
        kept, total = sum(int(keep.sum()) for keep in mask), sum(keep.numel() for keep in mask)
        held = "" if self._hooks else ", detached"
        return f"Skeleton({self._of}, {len(mask)} layers, {kept:,} of {total:,} weights kept{held})"

    def __enter__(self) -> "Skeleton":
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()


class _Held:
    """One weight and its pruned positions. Weak, so that hooks keep no model alive."""

    def __init__(self, weight: nn.Parameter, keep: Tensor) -> None:
        self._all = ~keep
        self._hook: Any = None
        self.noting = False
        self.noted: Tensor | None = None
        self.bind(weight)

    @property
    def keep(self) -> Tensor:
        return ~self._all

    def bind(self, weight: nn.Parameter) -> None:
        self.let_go()
        self.weight = weakref.ref(weight)
        self._where = _as_read(self._all, weight)
        self.zero()

    def move(self, keep: Tensor, optimizers: Sequence[Optimizer]) -> None:
        weight = self.weight()
        assert weight is not None, "the skeleton has looked"
        changed = _as_read(self._all ^ ~keep, weight)
        for optimizer in optimizers:
            _forget(optimizer, weight, changed)
        self._all = ~keep
        self._where = _as_read(self._all, weight)
        self.zero()
        self.zero_own_gradient(weight)

    def let_go(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def where(self, device: torch.device) -> Tensor:
        if self._where.device != device:
            self._where = self._where.to(device)
        return self._where

    def zero_gradient(self, gradient: Tensor) -> Tensor:
        if self.noting:
            dense = gradient.detach().to_dense() if gradient.layout == torch.sparse_coo else gradient.detach()
            self.noted = dense if self.noted is None else self.noted + dense
        return _zeroed(gradient, self.where(gradient.device))

    def zero_own_gradient(self, weight: Tensor) -> None:
        if weight.grad is not None:
            if weight.grad.layout == torch.sparse_coo:
                weight.grad = _zeroed(weight.grad, self.where(weight.device))
            else:
                local(weight.grad).masked_fill_(self.where(weight.device), 0)

    @torch.no_grad()
    def zero(self) -> None:
        weight = self.weight()
        if weight is None:
            return
        # Filled, because multiplying by the mask would leave NaN and -0.
        local(weight).masked_fill_(self.where(weight.device), 0)
        if self._hook is None and weight.requires_grad:  # also where it was frozen until now
            if is_sharded(weight):  # FSDP2 puts the gradient in its place, and calls no other hook
                self._hook = weight.register_post_accumulate_grad_hook(self.zero_own_gradient)
            else:
                self._hook = weight.register_hook(self.zero_gradient)

    def warn_of_another_mask(self, loaded: Tensor) -> None:
        if lost := int((local(loaded).ne(0) & self.where(loaded.device)).sum()):
            warnings.warn(
                f"{lost:,} loaded weights of a layer {tuple(loaded.shape)} are pruned now, and set to 0: the mask moves"
                " while training, so load the state of its MaskUpdate before the model's",
                stacklevel=5,
            )

    def zero_stale_gradient(self) -> None:
        if (weight := self.weight()) is not None:
            self.zero_own_gradient(weight)

    def zero_state(self, optimizer: Optimizer) -> None:
        """Forget what a used optimizer remembers of pruned weights: momentum, second moments, averages."""
        if (weight := self.weight()) is not None:
            _forget(optimizer, weight, self.where(local(weight).device))


def _forget(optimizer: Optimizer, weight: Tensor, where: Tensor) -> None:
    for value in optimizer.state.get(weight, {}).values():
        if isinstance(value, Tensor) and value.shape == weight.shape:
            local(value).masked_fill_(where.to(value.device), 0)


def _as_read(where: Tensor, weight: Tensor) -> Tensor:
    """The part of a whole mask that lies in this process, in the weights' own memory order."""
    where = part_like(where, weight)
    if weight.dim() == 4 and local(weight).is_contiguous(memory_format=torch.channels_last):
        return where.contiguous(memory_format=torch.channels_last)
    return where


def _fits(keep: Tensor | None, weight: Tensor | None) -> bool:
    return keep is not None and weight is not None and keep.shape == weight.shape


def _zeroed(gradient: Tensor, where: Tensor) -> Tensor:
    """A gradient with pruned entries zeroed; the sparse gradient of an embedding stays sparse."""
    if gradient.layout != torch.sparse_coo:
        return gradient.masked_fill(where, 0)
    gradient = gradient.coalesce()
    rows = gradient.indices()
    values = gradient.values().masked_fill(where[tuple(rows)], 0)
    return torch.sparse_coo_tensor(rows, values, gradient.shape, is_coalesced=True, check_invariants=False)


def _after_step(skeleton: "weakref.ref[Any]", optimizer: Optimizer) -> None:
    if (alive := skeleton()) is not None and alive._hooks:
        # Only the weights the optimizer has stepped: a backward pass under way may still need the others.
        stepped = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
        for held in alive._held:
            if id(held.weight()) in stepped:
                held.zero()


class _AfterLoad:
    """The hook after `load_state_dict`. It stays behind when its module is copied or pickled."""

    def __init__(self, skeleton: Skeleton, module: nn.Module, leaf: str, held: _Held) -> None:
        self.skeleton, self.held, self._leaf = skeleton, held, leaf
        self._module = weakref.ref(module)

    def __call__(self, module: nn.Module, _: Any) -> None:
        weight = module._parameters.get(self._leaf)
        if module is not self._module() or weight is None:
            return
        if self.skeleton.moving:
            self.held.warn_of_another_mask(weight)
        if weight is self.held.weight():
            self.held.zero()
        else:
            self.held.bind(weight)  # load_state_dict(assign=True) has put a new parameter in its place

    def __reduce__(self) -> tuple[Any, ...]:
        return _no_hook, ()


def _no_hook() -> Any:
    return _do_nothing


def _do_nothing(*_: object) -> None: ...


def _let_go_of_earlier(parameters: dict[str, nn.Parameter], mask: Tensors, model: nn.Module) -> None:
    """Detach masks attached before: one at a time holds a model."""
    earlier = {
        hook.skeleton: None
        for module in model.modules()
        for hook in module._load_state_dict_post_hooks.values()
        if isinstance(hook, _AfterLoad)
    }
    names = {id(weight): name for name, weight in parameters.items()}
    lost = 0
    for skeleton in earlier:
        for held in skeleton._held:
            if (name := names.get(id(held.weight()))) is not None:
                lost += int((mask[name] & held._all).sum())
        skeleton.detach()
    if lost:
        warnings.warn(
            f"{lost:,} weights that this mask keeps are zero: the mask attached before, now detached, had pruned them",
            stacklevel=5,
        )


def matching_parameters(mask: Tensors, model: nn.Module) -> dict[str, nn.Parameter]:
    """The model's parameters that a mask names.

    Raises:
        MaskError: a name the model does not have, or another shape.

    """
    model = unwrap(model)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, keep in mask.items():
        if name not in parameters:
            raise MaskError(
                f"the mask has a layer {name!r} that {type(model).__name__} does not have:"
                f" it belongs to another model (this one has {', '.join(list(parameters)[:4])}, ...)"
            )
        if parameters[name].shape != keep.shape:
            raise MaskError(
                f"{name} is {tuple(parameters[name].shape)} in {type(model).__name__} but {tuple(keep.shape)}"
                " in the mask: it belongs to another model"
            )
    return {name: parameters[name] for name in mask}


def gradient_hooks(model: nn.Module) -> list[str]:
    """The parameters that have gradient hooks other than a skeleton's; a copy has none of these hooks."""
    found = []
    for name, parameter in model.named_parameters():
        hooks = (getattr(parameter, kind, None) for kind in ("_backward_hooks", "_post_accumulate_grad_hooks"))
        if any(
            not isinstance(getattr(hook, "__self__", None), _Held) for kind in hooks for hook in (kind or {}).values()
        ):
            found.append(name)
    return found


def check(mask: Tensors, model: nn.Module) -> None:
    """See `Mask.check`."""
    to_dense = getattr(unwrap(model), "to_dense", None)
    if callable(to_dense):  # a compiled network, whose weights are vectors of kept values
        model = to_dense()
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
