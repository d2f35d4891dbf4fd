"""What a mask keeps of the loss's sensitivity to its weights, measured after pruning."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from skeletal.core.choices import require
from skeletal.core.masks.match import by_first_names, matching_parameters
from skeletal.core.model.batches import Cycle, Loss
from skeletal.core.model.denormals import flush_denormals
from skeletal.core.model.gradients import Derivatives
from skeletal.core.model.precision import prefers_channels_last
from skeletal.core.model.preserve import differentiable, preserve_model
from skeletal.core.model.tensors import widen
from skeletal.core.model.weights import unwrap


@dataclass(frozen=True)
class Saliency:
    """Sums over the kept weights, at θ̄ = θ ⊙ c, of one mean gradient."""

    force: float
    """Σ |θ̄_i ∇L(θ̄)_i|: what FORCE maximizes (paper, Eq. 6)"""
    gradient_norm: float
    """Σ c_i [∇L(θ̄)_i]²: the gradient norm after pruning, squared (section 3 and appendix B.2)"""
    loss: float
    """the mean loss at θ̄"""


@differentiable()
def measure_saliency(
    model: nn.Module,
    batches: Iterable[Any],
    mask: Mapping[str, Tensor],
    *,
    count: int,
    loss: Loss | None = None,
    bn_mode: Literal["train", "eval"] = "train",
    seed: int = 0,
) -> Saliency:
    """Measure the saliency and the gradient norm that a mask keeps, on batches other than those it was found on.

    On the batches it was found on, a mask only shows how well it fits them. The mean is taken before the absolute
    value, as in scores, so more batches mean less noise and smaller sums: only compare results with the same `count`.

    Args:
        model: at the weights θ, dense; left as found.
        batches: as for `prune`; the first `count` of them.
        mask: a `Mask`, or bool tensors by parameter name; all ones measures the dense network.
        count: batches whose gradients are averaged.
        loss: see `prune`.
        bn_mode: see `prune`.
        seed: for random layers.

    Raises:
        MaskError: the mask belongs to another model.
        ValueError: `count` is below 1, or there are no batches.
        NonFiniteError: the loss or a gradient is NaN or infinite.

    """
    require("bn_mode", bn_mode, ("train", "eval"))
    if count < 1:
        raise ValueError(f"count is {count}; it has to be at least 1")
    model = unwrap(model)
    mask = {name: keep.detach().bool() for name, keep in by_first_names(mask, model).items()}
    parameters = matching_parameters(mask, model)
    masked = {
        name: widen(weight.detach()).masked_fill(~mask[name].to(weight.device), 0)
        for name, weight in parameters.items()
    }
    derivatives = Derivatives(
        model, Cycle(batches), count, loss, bn_mode, channels_last=prefers_channels_last(model, "float32")
    )
    with preserve_model(model, training=bn_mode == "train", seed=seed, loss=loss), flush_denormals():
        gradient, mean_loss = derivatives.gradient(masked)
    force = norm = 0.0
    for name, weight in masked.items():
        on_mask = gradient[name] * mask[name].to(weight.device)
        force += (weight * on_mask).abs().sum(dtype=torch.float64).item()
        norm += on_mask.to(torch.float64).square().sum().item()
    return Saliency(force, norm, mean_loss)
