"""What computes a masked network: torch on its dense weights, or what `skeletal.compile` makes of it."""

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from skeletal.core.masks.mask import Mask
from skeletal.core.model.distributed import everyone, rank, together
from skeletal.core.progress import stage

ENGINES = ("auto", "dense", "sparse")


@dataclass(frozen=True)
class Engine:
    """A network to train or score, and what it takes to make the same one again."""

    network: nn.Module
    """the model itself, or a compiled one in its place, which has the model's names and `state_dict`"""
    choice: dict[str, Any]
    """plain data, for a checkpoint: what was "asked", whatever it came to, and for a compiled network which way was
    chosen, layer by layer"""

    @property
    def name(self) -> str:
        """What a person reads: "dense", "sparse", or "auto: " and what that came to."""
        asked = self.choice["asked"] if self.compiled else "dense"
        return f"auto: {self.choice['chosen']}" if asked == "auto" else asked

    @property
    def modules(self) -> nn.Module:
        """What holds the network's own modules under their names, and what their code writes to attributes."""
        # Before its mask moves, a compiled network is dense for a step.
        return self.network.get_submodule("network") if hasattr(self.network, "sparse_layers") else self.network

    @property
    def compiled(self) -> bool:
        """Whether masked weights are vectors of kept values, to which no mask has to be attached."""
        return "paths" in self.choice


def _refuse_another(asked: str, earlier: dict[str, Any], mask: Mask | None, device: torch.device) -> None:
    begun = earlier["asked"]
    comes_to_dense = "paths" not in earlier and (asked == "dense" or mask is None or device.type != "cpu")
    if asked not in ("auto", begun) and not comes_to_dense:
        raise ValueError(
            f"this run began with --engine {begun}, and the optimizer's state in its checkpoint fits no other:"
            f" continue with --engine {begun}, or"
            f" delete the checkpoint to train from the beginning with --engine {asked}"
        )
    if "paths" in earlier and device.type != "cpu":
        raise ValueError(
            f"this run began on a CPU with --engine {begun}, which {device.type} does not have: go on with"
            " --device cpu, or delete the checkpoint to train from the beginning"
        )


def engine_for(
    model: nn.Module,
    mask: Mask | None,
    asked: str,
    *,
    device: torch.device,
    example: Callable[[], Tensor],
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    earlier: dict[str, Any] | None = None,
) -> Engine:
    """The network that a run trains or scores.

    Args:
        model: on `device`; not changed.
        mask: without one there is nothing to make sparse: the engine is dense.
        asked: one of `ENGINES`. "auto" repeats the earlier choice, or measures.
        device: the sparse kernels are for the CPU.
        example: gives a batch of inputs of the usual size.
        autocast: what the network runs under, measurements included.
        earlier: `Engine.choice` of the run that is continued.

    Warns:
        UserWarning: "sparse" was asked for, but the device is no CPU; or the sparse engine does not work on this host
            (see `skeletal.engine.available`): dense it is.

    Raises:
        ValueError: a run cannot continue with this engine, or on this device, as it began with another.

    """
    if earlier is not None:
        _refuse_another(asked, earlier, mask, device)
        asked = earlier["asked"]
    dense = Engine(model, {"asked": asked})
    if mask is None or asked == "dense" or (earlier is not None and "paths" not in earlier):
        return dense
    if device.type != "cpu":
        if asked == "auto":  # whichever is faster, and there is only one
            return dense
        warnings.warn(
            f"the sparse engine is for CPUs: {device.type} computes with dense, masked weights, as --engine dense does",
            stacklevel=3,
        )
        return dense
    from skeletal.engine import available

    with autocast():
        works = available("bfloat16" if torch.is_autocast_enabled("cpu") else "float32")
    if not works:
        if earlier is not None and "paths" in earlier:
            raise ValueError(f"this run began with the sparse engine, which does not work here: {works}")
        warnings.warn(f"training dense, masked weights: the sparse engine does not work here: {works}", stacklevel=3)
        return dense
    with stage("preparing the sparse engine"):
        return _compiled(model, mask, asked, example(), autocast, earlier)


def _compiled(
    model: nn.Module,
    mask: Mask,
    asked: str,
    example: Tensor,
    autocast: Callable[[], AbstractContextManager[Any]],
    earlier: dict[str, Any] | None,
) -> Engine:
    from skeletal.engine.compile import compile

    fast = compile(model, mask, example, path="dense").train(model.training)
    if earlier is not None:
        paths = earlier.get("paths", {})
        if paths.keys() != fast.sparse_layers().keys():
            raise ValueError(
                f"the checkpoint is of a network with the sparse layers {', '.join(map(str, paths))}, this one has"
                f" {', '.join(fast.sparse_layers())}: delete the checkpoint to train from the beginning"
            )
        fast.repeat(paths, earlier["chosen"])
    else:
        with autocast():
            fast.use(asked)
    paths = {name: layer.path for name, layer in fast.sparse_layers().items()}
    measured_with = {} if earlier is None or "kept" not in earlier else {"kept": earlier["kept"]}
    return Engine(fast, {"asked": asked, "chosen": fast.chosen, "paths": paths} | measured_with)


def plan_again(
    engine: Engine,
    model: nn.Module,
    mask: Mask,
    example: Callable[[], Tensor],
    autocast: Callable[[], AbstractContextManager[Any]],
) -> Engine:
    """The same engine for a network whose mask has moved; ranks plan alike.

    Every layer takes the way that was chosen for it, so that a run with updates and one that was resumed between them
    are the same. "auto" measures again if fewer than half of the weights it measured with are left.

    Args:
        engine: compiled; its choice has under "kept" how many weights it was measured with.
        model: the dense network, with the new mask attached.
        mask: the new one.
        example: see `engine_for`.
        autocast: see `engine_for`.

    """
    from skeletal.engine.compile import compile

    choice = engine.choice
    with torch.random.fork_rng(devices=[]):
        fast = compile(model, mask, example(), path="dense").train(model.training)
        if choice["asked"] == "auto" and 2 * mask.kept < choice["kept"]:
            with together():
                if rank() == 0:
                    with autocast():
                        fast.use("auto")
            found = everyone({name: layer.path for name, layer in fast.sparse_layers().items()})[0]
            choice = choice | {"chosen": everyone(fast.chosen)[0], "paths": found, "kept": mask.kept}
    fallback = choice["asked"] if choice["asked"] != "auto" else "sparse"
    paths = {name: choice["paths"].get(name, fallback) for name in fast.sparse_layers()}
    fast.repeat(paths, choice["chosen"])
    return Engine(fast, choice | {"paths": paths})


def engine_for_all(
    model: nn.Module, mask: Mask | None, asked: str, *, earlier: dict[str, Any] | None = None, **options: Any
) -> Engine:
    """`engine_for`, the same on all ranks: rank 0 measures, and the others repeat what it has chosen."""
    with together():
        engine = engine_for(model, mask, asked, earlier=earlier, **options) if rank() == 0 else None
    choice = everyone(None if engine is None else engine.choice)[0]
    return engine or engine_for(model, mask, "auto", earlier=choice, **options)
