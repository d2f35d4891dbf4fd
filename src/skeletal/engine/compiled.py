"""A compiled network: a module that is used like the masked one, at the cost of what is left of it."""

import copy
import functools
import inspect
import warnings
import weakref
from collections.abc import Iterator, Mapping
from multiprocessing.context import get_spawning_popen
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from skeletal.compaction.compact import Compact, take_extra_states
from skeletal.compaction.original import Original
from skeletal.compaction.tracing.network import Traced
from skeletal.compaction.tracing.trace import (
    become_like,
    modes_of,
    state_tensors,
    take_trainable,
    trainable_of,
)
from skeletal.core.choices import require
from skeletal.core.masks.attach import Skeleton
from skeletal.core.masks.mask import Mask
from skeletal.core.model.batches import map_tensors
from skeletal.core.model.precision import autocast_as_inputs
from skeletal.core.model.preserve import device_of, differentiable
from skeletal.engine.decay import param_groups, warn_of_lost_decay
from skeletal.engine.dense_compact import gain
from skeletal.engine.hooks import hooks_of, hooks_since, put_around, take_hooks
from skeletal.engine.host.availability import available
from skeletal.engine.kernels import arena
from skeletal.engine.network import (
    REPLACED,
    Network,
    channels_last,
    input_shapes,
    refuse_exporters,
    refuse_transforms,
    under_its_name,
)
from skeletal.engine.pickled import again, is_narrow, of_its_own, take_own, zeros_in
from skeletal.engine.report import DENSE_LAST, FULL, EngineReport, LayerTimes
from skeletal.engine.user_state import Handed, from_user, load_written, to_user

if TYPE_CHECKING:  # the kernels are loaded where a check has found that they work
    from skeletal.engine.modules.layers import Sparse

PATHS = ("auto", "sparse", "dense")


class Compiled(Traced):
    """A skeleton that costs what is left of it. Made by `skeletal.compile`.

    The same function as the masked network, up to rounding. Its parameters are each masked weight's kept values, in
    the order of the mask, under the weight's own name, and all other parameters as they are, without removed channels.
    `state_dict` and `load_state_dict` use the original network's names and shapes.
    """

    def __init__(self, compacted: Compact, mask: Mask, example: Any, *, sparse: bool = True) -> None:
        super().__init__()
        self._sparse = sparse
        self.mask = mask
        self._example = example
        self._original = Original(compacted)
        self._zeros = zeros_in(compacted.original, compacted.original_mask)
        self._removed, self._channels = str(compacted.report), compacted.report.summary
        module, replaced = compacted.model, []
        self._graph, self.network = None, module
        if sparse and available():
            from skeletal.engine.exchange import exchange

            replaced, note = exchange(module, compacted.mask, example)
            self._removed += f"\n{note}" if note else ""
            if isinstance(module, fx.GraphModule):
                self._graph, self.network = module.graph, Network(module)
        self._replaced = tuple(replaced)
        self.handed = Handed()
        vectors = {f"{name}.weight" for name in replaced}
        self._held_masks = {name: keep for name, keep in compacted.mask.items() if name not in vectors}
        self._hold()
        self._shapes = {} if self._graph is None else input_shapes(self._graph)
        self._times: dict[str, tuple[float, float]] = {}
        self._steps: dict[str, float] = {}
        self._notes: tuple[str, ...] = ()
        self._elsewhere: dict[str, nn.Parameter] = {}
        """parameters that the forward pass does not use, which the model itself goes on training (see `carry_over`)"""
        self.chosen = "sparse"
        if not sparse:
            self.chosen = DENSE_LAST
            self._notes = (gain(compacted.report, device_of(module)),)
        self.register_state_dict_post_hook(to_user)
        self.register_load_state_dict_pre_hook(from_user)
        self.take_over(self._original.blueprint)
        kind: Any = _taking(self._original.blueprint)
        self.__class__ = kind
        self._made = frozenset({*vars(self), "_made"})

    def _hold(self) -> None:
        """Masked parameters that stay dense (of attention, of 1d convolutions; biases) are held at 0 as usual."""
        weakref.finalize(self, arena.release).atexit = False  # networks that are left ask for theirs anew
        warn_of_lost_decay([layer.values for layer in self.sparse_layers().values()])
        if self._held_masks:
            Skeleton(self._held_masks, self.network)

    def forward(self, *arguments: Any, **options: Any) -> Any:
        """What the original network takes and returns."""
        if self._sparse:
            refuse_exporters()
        if self._replaced:
            refuse_transforms()
        if torch.compiler.is_compiling() and isinstance(self.network, Network):
            return self._run_outside_graphs(*arguments, **options)
        return self._run(*arguments, **options)

    @torch._disable_dynamo  # like torch.compiler.disable, without loading the compiler before it is used
    def _run_outside_graphs(self, *arguments: Any, **options: Any) -> Any:
        return self._run(*arguments, **options)

    def _run(self, *arguments: Any, **options: Any) -> Any:
        self._take_over()
        if self.chosen == DENSE_LAST:
            arguments = tuple(channels_last(argument) for argument in arguments)
        # The graph may switch gradients off; an error must not leave them so.
        with autocast_as_inputs(arguments, options, self.parameters()), torch.set_grad_enabled(torch.is_grad_enabled()):
            return self.network(*arguments, **options)

    def __setattr__(self, name: str, value: Any) -> None:
        own = vars(self).get("_modules", {}).get("network")
        for kind in () if own is None else (own._parameters, own._buffers):
            if name in kind and isinstance(value, Tensor):
                kind[name] = value  # as `functional_call` does with those of an ordinary module
                return
        part = isinstance(value, nn.Module) and "_taken_over" in vars(self)
        if part and (under_its_name(own, name) is not None or any(True for _ in value.parameters())):
            raise AttributeError(f"`{name}` cannot be set: {REPLACED}")
        super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        """Modules and tensors under the original network's names, too, where `functional_call` looks for them."""
        found = under_its_name(self.__dict__.get("_modules", {}).get("network"), name)
        return super().__getattr__(name) if found is None else found

    def _take_over(self) -> None:
        """Load what was written into a `state_dict` of this network, as into any module's own memory."""
        if self.handed.any:  # else nothing that torch.compile could not look into
            load_written(self)

    def __len__(self) -> int:
        """How many modules it has, itself included; why it has a length: see `GraphNetwork`."""
        return sum(1 for _ in self.modules())

    def param_groups(self, weight_decay: float, no_decay: tuple[str, ...] = ()) -> list[dict[str, Any]]:
        """Parameter groups for an optimizer: weight decay for weights, none for norms and biases.

        This follows the usual recipes (no decay where `ndim <= 1`), but goes by the dense weights' dimensions: kept
        values are vectors.

        Args:
            weight_decay: of the first group.
            no_decay: names of further parameters without weight decay.

        """
        return param_groups(self, weight_decay, no_decay)

    # What a user sees of parameters and buffers has the original network's names.

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters under the original network's names; masked weights are vectors of kept values."""
        self._take_over()
        return self.network.named_parameters(prefix, recurse, remove_duplicate)

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        """Buffers under the original network's names."""
        self._take_over()
        return self.network.named_buffers(prefix, recurse, remove_duplicate)

    def get_parameter(self, target: str) -> nn.Parameter:
        """The parameter of a name in the original network; of a masked weight, its vector of kept values."""
        self._take_over()
        path, _, name = target.rpartition(".")
        return self.network.get_submodule(path).get_parameter(name)

    def get_buffer(self, target: str) -> Tensor:
        """The buffer of a name in the original network."""
        self._take_over()
        return self.network.get_buffer(target)

    def sparse_layers(self) -> dict[str, "Sparse"]:
        """The layers over kept weights, by name."""
        layers: Any = {name: self.network.get_submodule(name) for name in self._replaced}
        return layers

    def to_dense(self) -> nn.Module:
        """A network of the original architecture with the current values; pruned weights are exactly 0.

        Kept weights that cannot have an effect, because their channels were removed, keep their old values. Hooks
        registered here since, on parts or on the whole, are on the same parts there.
        """
        dense = self._dense()
        take_hooks(dense, hooks_since(self.network, dense))
        put_around(dense, hooks_of(self))
        return dense

    @differentiable()
    def _dense(self) -> nn.Module:
        """The dense network with the hooks that the original one had."""
        self._take_over()
        values = {name: tensor.detach() for name, tensor in (state_tensors(self.network) | self._elsewhere).items()}
        for name, layer in self.sparse_layers().items():
            values[f"{name}.weight"] = layer.dense_weight().detach()
        dense = self._original.to_dense(values)
        become_like(dense, self.network, self.training)
        take_extra_states(dense, self.network)
        return dense

    def use(self, path: str) -> None:
        """Run all layers "sparse" or "dense", or each the way measured to be faster ("auto"). Parameters do not change.

        Warns:
            UserWarning: the kernels do not work on this host (see `engine.available`), so all run dense.

        Raises:
            ValueError: an unknown path, or a sparse one where the weights are not float32 or float64 on the CPU.

        """
        require("path", path, PATHS)
        if not self._sparse and path != "sparse":
            self.chosen = DENSE_LAST
            return
        works = path == "dense" or not self._sparse or available(maps_here())
        if not works:
            self._notes = (f"all layers are dense, as the sparse engine does not work here: {works}",)
            warnings.warn(self._notes[0], stacklevel=3)
            path = "dense"
        if path == "auto":
            self._choose()
            return
        if path == "sparse" and not self._can_run_sparse():
            weight = next(self.parameters())
            raise ValueError(
                f"sparse kernels have weights in float32 or float64 on the CPU, not {weight.dtype} on {weight.device}"
            )
        self.repeat(dict.fromkeys(self.sparse_layers(), path), path)

    def _can_run_sparse(self) -> bool:
        if not self._sparse:
            return False
        layers = self.sparse_layers().values()
        if not layers:
            return True
        from skeletal.engine.codegen.packed_bf16 import COMPUTES

        return all(layer.values.device.type == "cpu" and layer.values.dtype in COMPUTES for layer in layers)

    def repeat(self, paths: Mapping[str, str], chosen: str) -> None:
        """Take each layer's path as it was chosen before, under the name `chosen`; nothing is measured."""
        self.chosen = chosen
        for name, layer in self.sparse_layers().items():
            layer.path, layer.bf16 = paths[name], not chosen.endswith(FULL)
        if isinstance(self.network, Network) and self._graph is not None:
            from skeletal.engine.lower import lower

            self.network.install(lower(self.network, self._graph))

    def _choose(self) -> None:
        layers = self.sparse_layers()
        if not layers or not self._can_run_sparse():
            self._notes = ("nothing here runs on sparse kernels: all layers are dense",)
            self.repeat(dict.fromkeys(layers, "dense"), "dense")
            return
        from skeletal.engine.autotune import fastest

        choice = fastest(self, layers, self._shapes, self._example)
        self._times = {name: (times[0], times[1]) for name, times in choice["times"].items()}
        self._steps = dict(choice["steps"])
        paths = {name: "sparse" if name in choice["sparse"] else "dense" for name in layers}
        self.repeat(paths, choice["chosen"])

    @property
    def report(self) -> EngineReport:
        """What runs how, and the times it was chosen by."""
        layers = tuple(
            LayerTimes(name, layer.shape, layer.values.numel(), layer.path, *self._times.get(name, (None, None)))
            for name, layer in self.sparse_layers().items()
        )
        return EngineReport(layers, self._steps, self.chosen, self._removed, self._notes, self._channels)

    def _apply(self, fn: Any, recurse: bool = True) -> "Compiled":
        self._take_over()
        super()._apply(fn, recurse)
        self._example = map_tensors(lambda value: value.to(fn(value.new_empty(0))), self._example)
        if self.chosen != "dense" and not self._can_run_sparse():
            self.use("dense")  # moved to a GPU, or to half precision
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "Compiled":
        self._take_over()
        new = self.__class__.__new__(self.__class__)
        memo[id(self)] = new
        for key, value in self.__dict__.items():
            new.__dict__[key] = value if key in ("mask", "_example") else copy.deepcopy(value, memo)
        new._hold()
        return new

    def __reduce__(self) -> Any:
        """Pickled as the dense network it stands for.

        Raises:
            RuntimeError: it was put into shared memory, and a process that is started would get a copy all the same.

        """
        if get_spawning_popen() is not None and any(values.is_shared() for values in self.network.parameters()):
            raise RuntimeError(
                "a started process gets a copy of a compiled network, not the memory that it shares: share the masked"
                " network and compile it there, start processes by fork, or use DistributedDataParallel"
            )
        paths = {name: layer.path for name, layer in self.sparse_layers().items()}
        mask = dict(self.mask), dict(self.mask.metadata)
        dense, state = self._dense(), (modes_of(self), trainable_of(self.network), self._zeros)
        take_trainable(dense, trainable_of(self._original.blueprint))  # channels were removed with these in mind
        narrow = any(is_narrow(layer.values) for layer in self.sparse_layers().values())
        made_of = Compiled, dense, mask, self._example, paths, self.chosen, state, self._sparse, narrow
        return again, made_of, of_its_own(self, self._made)

    def __setstate__(self, state: dict[str, Any]) -> None:
        take_own(self, state)


def maps_here() -> str:
    """The type that maps are stored in where this is called."""
    bfloat16 = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    return "bfloat16" if bfloat16 else "float32"


def _taking(model: nn.Module) -> type[Compiled]:
    """The class of networks that take what this one takes, for code that asks: trainers drop other columns of a batch.

    They ask the class, too, so a signature of the network alone would not do.
    """

    @functools.wraps(Compiled.forward)
    def forward(self: Compiled, *arguments: Any, **options: Any) -> Any:
        return Compiled.forward(self, *arguments, **options)

    own: Any = forward
    taken, own_self = inspect.signature(model.forward), inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    own.__signature__ = taken.replace(parameters=[own_self, *taken.parameters.values()])
    return type(Compiled.__name__, (Compiled,), {"__module__": __name__, "__doc__": Compiled.__doc__, "forward": own})
