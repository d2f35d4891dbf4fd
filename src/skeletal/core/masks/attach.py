"""Hold pruned weights at exactly zero, under any optimizer."""

import warnings
import weakref
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from skeletal.core.errors import MaskError
from skeletal.core.masks.held import Held
from skeletal.core.masks.match import fits, matching_parameters
from skeletal.core.model.tensors import Tensors
from skeletal.core.model.weights import unwrap


class Skeleton:
    """A model with its mask attached; `detach` lets go of the model and leaves the zeros where they are.

    Three hooks keep the promise, and `state_dict` keys stay the user's own. The gradient of a pruned weight
    is 0, so clipping, gradient norms and new optimizer state never see it. After each step of any optimizer, the
    pruned weights that it holds are reset to 0, because momentum from before the pruning would move them. They are
    also reset to 0 after `load_state_dict`. The model keeps the skeleton alive; the skeleton keeps nothing alive.
    A `deepcopy` of the model, or a pickled copy, carries no hooks: attach the mask to it, too. Of a weight that the
    model has exchanged for another parameter, the next step of an optimizer warns.

    A weight has one skeleton at a time, the last that was attached; the one before goes on holding its other weights.

    With FSDP2 (`fully_shard`), each rank holds its own part at zero: prune first, shard, then attach, on every rank.
    """

    def __init__(
        self, mask: Tensors, model: nn.Module, optimizer: Optimizer | None = None, pattern: str | None = None
    ) -> None:
        if optimizer is not None and not isinstance(optimizer, Optimizer):
            raise TypeError(f"attach takes a torch.optim.Optimizer, not {type(optimizer).__name__}")
        model = unwrap(model)
        parameters = matching_parameters(mask, model)
        _let_go_of_earlier(parameters, mask, model)
        self._of, self._model = type(model).__name__, weakref.ref(model)
        self._missed: set[str] = set()
        self._taken: list[str] = []  # by a mask attached later
        self._held = {name: Held(parameters[name], keep) for name, keep in mask.items()}
        self.pattern = pattern
        """of the mask, which single weights that come or go would break; None if it has none"""
        self.moving = False
        """whether something moves the mask while training; see `MaskUpdate`"""
        for held in self._held.values():
            held.zero_stale_gradient()
            if optimizer is not None:
                held.zero_state(optimizer)
        # The hook of all optimizers also covers those made later, and those inside a wrapper.
        me: weakref.ref[Any] = weakref.ref(self)
        self._hook: Any = register_optimizer_step_post_hook(lambda used, *_: _after_step(me, used))
        weakref.finalize(self, self._hook.remove)
        self._after_load: list[tuple[Held, Any]] = []
        ours = {id(weight): self._held[name] for name, weight in parameters.items()}
        for module in model.modules():  # every module that holds a weight, since each can be loaded by itself
            for leaf, weight in module._parameters.items():
                if (held := ours.get(id(weight))) is not None:
                    hook = module.register_load_state_dict_post_hook(_AfterLoad(self, module, leaf, held))
                    self._after_load.append((held, hook))

    def detach(self) -> None:
        """Remove every hook. Pruned weights stay zero until something moves them."""
        self._let_go(self._held)
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _let_go(self, names: Iterable[str]) -> None:
        gone = [self._held[name] for name in names]
        for held in gone:
            held.let_go()
        for held, hook in self._after_load:
            if held in gone:
                hook.remove()
        self._after_load = [(held, hook) for held, hook in self._after_load if held not in gone]

    def _give_up(self, weights: Container[int]) -> None:
        """Leave weights, told by their ids, to a later skeleton: held here, or in the place of what is held here."""
        model = self._model()
        taken = [name for name, held in self._held.items() if id(_stands(held.weight(), name, model)) in weights]
        if len(taken) == len(self._held):
            self.detach()
            return
        self._let_go(taken)
        self._taken += taken
        for name in taken:
            del self._held[name]

    @property
    def mask(self) -> Tensors:
        """Which weights are kept now."""
        return {name: held.keep for name, held in self._held.items()}

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """The parameters that are held, by name.

        Raises:
            MaskError: the skeleton is detached, its model is gone, or another mask has taken some of its weights.

        """
        if self._taken:
            raise MaskError(f"the skeleton does not hold {self._taken[0]} any more: another mask was attached to it")
        found = {name: held.weight() for name, held in self._held.items()}
        alive = {name: weight for name, weight in found.items() if weight is not None}
        if self._hook is None or len(alive) < len(found):
            raise MaskError("the skeleton holds no weights any more: it was detached, or its model is gone")
        return alive

    def move(self, mask: Mapping[str, Tensor], *optimizers: Optimizer) -> None:
        """Hold another mask from now on, between two steps.

        Weights that go are set to 0, weights that come start at 0, and the optimizers' memory of either
        (momentum, moments) to what they begin with; everything else stays bit-identical.

        Args:
            mask: of the same names and shapes.
            optimizers: all that hold the weights.

        Raises:
            MaskError: names or shapes differ; or see `weights`.

        """
        weights = self.weights
        if wrong := [name for name in weights.keys() | mask.keys() if not fits(mask.get(name), weights.get(name))]:
            raise MaskError(f"the new mask does not fit the attached one at {min(wrong)}: it belongs to another model")
        for name, held in self._held.items():
            held.move(mask[name].detach().to("cpu", torch.bool), optimizers)

    def keep_gradients(self, wanted: bool) -> None:
        """Record the gradients of all weights, pruned ones included, in every backward pass from now on; or stop."""
        for held in self._held.values():
            held.note(wanted)

    @property
    def gradients(self) -> Tensors:
        """What was recorded since `keep_gradients(True)`, layers without are missing.

        Summed over the backward passes whose sum is in `.grad`: what `zero_grad` has thrown away is not in it.
        """
        noted = {name: held.noted for name, held in self._held.items()}
        return {name: gradient for name, gradient in noted.items() if gradient is not None}

    def __repr__(self) -> str:
        mask = self.mask.values()
        kept, total = sum(int(keep.sum()) for keep in mask), sum(keep.numel() for keep in mask)
        held = "" if self._hook else ", detached"
        return f"Skeleton({self._of}, {len(mask)} layers, {kept:,} of {total:,} weights kept{held})"

    def __enter__(self) -> "Skeleton":
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()


def _after_step(skeleton: "weakref.ref[Any]", optimizer: Optimizer) -> None:
    if (alive := skeleton()) is not None and alive._hook is not None:
        # Only the weights the optimizer has stepped: a backward pass under way may still need the others.
        stepped = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
        others = []
        for name, held in alive._held.items():
            if id(held.weight()) in stepped:
                held.zero()
            else:
                others.append((name, held.weight()))
        if others and (model := alive._model()) is not None:
            _warn_of_exchanged(alive, model, others)


def _warn_of_exchanged(skeleton: Skeleton, model: nn.Module, weights: Sequence[tuple[str, Tensor | None]]) -> None:
    """Tell, once for each, which weights are the model's no longer: what has taken their place trains densely."""
    lost = [name for name, weight in weights if name not in skeleton._missed and not _belongs(weight, name, model)]
    skeleton._missed.update(lost)
    if lost:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        warnings.warn(
            f"{lost[0]}{more} of {skeleton._of} is not the parameter that the mask was attached to: it was exchanged,"
            " reparametrized or sharded since, and what has taken its place is not held at zero; attach the mask again,"
            " and before training, or detach this one",
            stacklevel=5,
        )


def _belongs(weight: Tensor | None, name: str, model: nn.Module) -> bool:
    """Whether a model still has a weight, under its name, or under that of a wrapper put around its layer."""
    if weight is None:
        return False
    return _at(name, model) is weight or any(parameter is weight for parameter in model.parameters())


def _at(name: str, model: nn.Module) -> Tensor | None:
    """The parameter that has this name now."""
    path, _, leaf = name.rpartition(".")
    try:
        return model.get_submodule(path)._parameters.get(leaf)
    except AttributeError:
        return None


def _stands(weight: Tensor | None, name: str, model: nn.Module | None) -> Tensor | None:
    """A weight, or what its model has put in its place."""
    return weight if model is None or _belongs(weight, name, model) else _at(name, model)


class _AfterLoad:
    """The hook after `load_state_dict`. It stays behind when its module is copied or pickled."""

    def __init__(self, skeleton: Skeleton, module: nn.Module, leaf: str, held: Held) -> None:
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


def skeletons_of(model: nn.Module) -> list[Skeleton]:
    """Those that hold weights of a model, in the order of its modules."""
    hooks = [hook for module in model.modules() for hook in module._load_state_dict_post_hooks.values()]
    return list(dict.fromkeys(hook.skeleton for hook in hooks if isinstance(hook, _AfterLoad)))


def _let_go_of_earlier(parameters: dict[str, nn.Parameter], mask: Tensors, model: nn.Module) -> None:
    """Masks attached before let go of these weights, and of no others: one at a time holds a weight."""
    names = {id(weight): name for name, weight in parameters.items()}
    lost = 0
    for skeleton in skeletons_of(model):
        for held in skeleton._held.values():
            if (name := names.get(id(held.weight()))) is not None:
                lost += int((mask[name] & held._all).sum())
        skeleton._give_up(names)
    if lost:
        warnings.warn(
            f"{lost:,} weights that this mask keeps are zero: the mask attached before, which this one replaces in its"
            " layers, had pruned them",
            stacklevel=5,
        )


def gradient_hooks(model: nn.Module) -> list[str]:
    """The parameters that have gradient hooks other than a skeleton's; a copy has none of these hooks."""
    found = []
    for name, parameter in model.named_parameters():
        hooks = (getattr(parameter, kind, None) for kind in ("_backward_hooks", "_post_accumulate_grad_hooks"))
        if any(
            not isinstance(getattr(hook, "__self__", None), Held) for kind in hooks for hook in (kind or {}).values()
        ):
            found.append(name)
    return found
