"""Mask: which weights of a network are kept."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from skeletal.core.errors import MaskError
from skeletal.core.masks import attach, interop, maskfile, match, variants
from skeletal.core.plots import bars
from skeletal.core.table import Table, Tabular


class Mask(Tabular, Mapping[str, Tensor]):
    """Which weights are kept: bool tensors by parameter name, and how they were found.

    A read-only mapping; `mask["layer1.0.conv1.weight"]` has the shape of that weight, True where
    it is kept. `print(mask)` shows one line per layer.

    Args:
        tensors: bool (or 0/1) tensors by parameter name; copied to the CPU.
        metadata: plain data (anything JSON can hold) saved with the mask. `biases` and `parameters`, the
            numbers of biases of the pruned layers and of all parameters, give the other two densities.

    Raises:
        MaskError: a tensor that holds something other than 0 and 1, or no tensors at all.

    """

    def __init__(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None) -> None:
        if not tensors:
            raise MaskError("a mask needs at least one layer: pass a tensor for each, by parameter name")
        self._tensors: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            keep = tensor.detach().bool()
            if tensor.dtype != torch.bool and not torch.equal(keep.to(tensor.dtype), tensor):
                raise MaskError(
                    f"mask of {name} {tuple(tensor.shape)} holds values other than 0 and 1: pass a bool tensor"
                )
            self._tensors[name] = keep.to("cpu", copy=True).contiguous()
        self.metadata: dict[str, Any] = dict(metadata or {})

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __eq__(self, other: object) -> bool:
        """Same layers with the same weights kept; metadata does not count."""
        if not isinstance(other, Mapping) or not all(isinstance(keep, Tensor) for keep in other.values()):
            return NotImplemented
        return self.keys() == other.keys() and all(torch.equal(keep, other[name]) for name, keep in self.items())

    __hash__ = None  # type: ignore[assignment]

    @property
    def kept(self) -> int:
        """How many weights are kept."""
        return sum(int(keep.sum()) for keep in self.values())

    @property
    def total(self) -> int:
        """How many weights the mask covers: the prunable ones."""
        return sum(keep.numel() for keep in self.values())

    @property
    def density(self) -> float:
        """Kept / total, over the prunable weights."""
        return self.kept / max(self.total, 1)

    @property
    def sparsity(self) -> float:
        """1 - density."""
        return 1 - self.density

    @property
    def empty_layers(self) -> list[str]:
        """The layers with no weight left, in order."""
        return [name for name, keep in self.items() if not keep.any()]

    @property
    def digest(self) -> str:
        """A SHA-256 of names, shapes and bits: two masks with the same digest keep the same weights."""
        digest = hashlib.sha256()
        for name, keep in sorted(self.items()):
            digest.update(f"{name} {tuple(keep.shape)} ".encode() + maskfile.pack(keep).numpy().tobytes())
        return digest.hexdigest()

    def densities(self) -> dict[str, float | None]:
        """Density over the field's three denominators: prunable weights, those plus their biases, all parameters.

        Biases and whatever else is not prunable count as kept. None where the mask does not know its model.
        """
        biases, parameters = self.metadata.get("biases"), self.metadata.get("parameters")
        kept, total = self.kept, self.total
        return {
            "prunable": kept / max(total, 1),
            "prunable + biases": None if biases is None else (kept + biases) / max(total + biases, 1),
            "all parameters": None if parameters is None else (kept + parameters - total) / parameters,
        }

    def __repr__(self) -> str:
        method = f", {self.metadata['method']}" if "method" in self.metadata else ""
        return f"Mask({len(self)} layers, {self.kept} of {self.total} kept, density {self.density:.4g}{method})"

    def _table(self) -> Table:
        rows = []
        for name, keep in self.items():
            kept, shape = int(keep.sum()), "x".join(map(str, keep.shape))
            share = f"{kept / max(keep.numel(), 1):.5f}" if kept else "empty"
            rows.append((name, shape, f"{kept:,}", f"{keep.numel():,}", share))
        return Table(("layer", "shape", "kept", "total", "density"), rows, notes=self._notes())

    def _notes(self) -> list[str]:
        lines = []
        for over, density in self.densities().items():
            known = "unknown" if density is None else f"{density:.6f}   sparsity {100 * (1 - density):.3f}%"
            lines.append(f"density over {over + ':':19} {known}")
        if pattern := self.metadata.get("pattern"):
            lines.append(f"pattern: {pattern}")
        if others := self.metadata.get("left_out"):
            shown = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
            lines.append(
                f"not covered: {len(others)} more weights of two and more dimensions ({shown});"
                " prunable=[...] takes weights by name"
            )
        return [*lines, f"kept {self.kept:,} of {self.total:,} prunable weights"]

    def to_dict(self) -> dict[str, Any]:
        """What the mask is made of, as plain data: totals, densities, each layer, metadata. `save` keeps the bits."""
        return {
            "kept": self.kept,
            "total": self.total,
            "densities": self.densities(),
            "layers": [
                {"name": name, "shape": list(keep.shape), "kept": int(keep.sum()), "total": keep.numel()}
                for name, keep in self.items()
            ],
            "metadata": dict(self.metadata),
        }

    def plot(self, axes: Any | None = None) -> Any:
        """Draw the density of each layer, on a logarithmic axis; an empty layer has no bar.

        Args:
            axes: of matplotlib, to draw into; None makes a figure.

        Returns:
            The axes.

        Raises:
            MissingExtraError: matplotlib, which the extra `run` brings, is not installed.

        """
        shares = [float(keep.double().mean()) if keep.numel() else 0.0 for keep in self.values()]
        method = self.metadata.get("method", "mask")
        title = f"{method}: {self.kept:,} of {self.total:,} weights kept ({100 * self.density:.3g}%)"
        return bars(axes, list(self), {"density": shares}, log=True, ylabel="density (fraction kept)", title=title)

    def save(self, path: str | Path) -> None:
        """Write the mask, one bit per weight, and its metadata as safetensors; at once or not at all."""
        maskfile.write(path, self._tensors, self.metadata)

    @classmethod
    def load(cls, path: str | Path) -> "Mask":
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: no such file.
            MaskError: a foreign or damaged file.

        """
        return cls(*maskfile.read(path))

    def attach(self, model: nn.Module, optimizer: Optimizer | None = None) -> attach.Skeleton:
        """Set the pruned weights of a model to exactly 0, now, and hold them there whatever optimizer runs.

        A mask attached before lets go of the weights that this one names, and goes on holding its others; detaching
        either lets go of its own alone. So masks may hold parts of a model each, and a new mask of the whole model
        replaces the old one.

        Args:
            model: changed in place; its `state_dict` keys are not.
            optimizer: one that has already been used: its momentum and moments at pruned weights are cleared.

        Returns:
            A handle; `.detach()` removes every hook. It is also a context manager.

        Raises:
            MaskError: the mask belongs to another model.

        """
        return attach.Skeleton(self._tensors, model, optimizer, self.metadata.get("pattern"))

    def check(self, model: nn.Module) -> None:
        """Make sure that every pruned weight of a model is exactly 0.

        Raises:
            MaskError: naming the layer and the first weight that has moved, or that the model does not fit.

        """
        match.check(self._tensors, model)

    def shuffled(self, seed: int) -> "Mask":
        """A mask with as many weights in every layer, at positions drawn anew: its layer densities alone."""
        method = f"{self.metadata.get('method', 'mask')}-shuffled"
        made = {"method": method, "shuffled": seed, "connected": None}
        made |= {"pattern": None} if "pattern" in self.metadata else {}
        return Mask(variants.shuffled(self._tensors, seed), self.metadata | made)

    def to_torch(self, model: nn.Module) -> None:
        """Hand the mask over to `torch.nn.utils.prune`, which keeps `<weight>_orig` and `<weight>_mask`."""
        interop.to_torch(self._tensors, model)

    @classmethod
    def from_torch(cls, model: nn.Module) -> "Mask":
        """The mask of a model pruned with `torch.nn.utils.prune`.

        Raises:
            MaskError: nothing in the model is pruned in this way.

        """
        return cls(interop.from_torch(model), {"method": "torch.nn.utils.prune"})
