"""What passes through a network cost: counted at the mask that the network has when they are made."""

from collections.abc import Mapping
from contextlib import suppress

from torch import Tensor, nn

from skeletal.core.diagnosis.macs import Macs, Uses, count_uses
from skeletal.core.model.passes import Kind, Passes
from skeletal.core.model.preserve import preserve_model
from skeletal.core.model.weights import prunable_weights
from skeletal.harness.ledger import Cost


class Meter:
    """Adds up what passes cost.

    What is counted follows from the passes that are made and the mask at that moment, not from a method's name:

    - a forward pass: every kept weight, at each position it is used at;
    - a gradient: backward to the kept weights, and through them to the layers' inputs; to all weights instead where
      pruned ones may return, or where the gradient is used as a whole (RigL's updates: 2 f_kept + f_dense in all);
    - a Hessian product: the same, with gradients of all weights, and then backward through both passes. With f for a
      forward pass and g for backward to the inputs, that takes f + g with the vector's entries (at pruned weights they
      are not 0) in the place of weights, f + g to the weights, and 2 g to the inputs.

    `dense` counts the same passes with no weight pruned. What a run computes only to inform or to check itself is not
    counted: diagnoses, measurements of speed, the comparison of recorded steps with unrecorded ones.

    Args:
        uses: of the network's weights by an example.
        mask: what the network keeps at first; None is everything.
        everywhere: whether gradients of pruned weights are always needed.

    """

    def __init__(self, uses: Uses, mask: Mapping[str, Tensor] | None = None, *, everywhere: bool = False) -> None:
        self._uses, self._everywhere = uses, everywhere
        self._dense = self._kept = uses.macs()
        self.cost = Cost()
        self.turn_to(mask)

    def turn_to(self, mask: Mapping[str, Tensor] | None) -> None:
        """Count with another mask from now on."""
        self._kept = self._dense if mask is None else self._uses.macs(mask)

    def add(self, passes: Passes) -> None:
        """Count passes."""
        self.cost += self.price(passes)

    def price(self, passes: Passes) -> Cost:
        """What passes cost at the present mask."""
        everywhere = passes.everywhere or self._everywhere
        forward_dense, backward_dense = _macs(passes.kind, self._dense, self._dense, everywhere)
        forward_kept, backward_kept = _macs(passes.kind, self._kept, self._dense, everywhere)
        each = Cost(int(passes.fresh), forward_dense, forward_kept, backward_dense, backward_kept)
        return each.times(passes.examples)


def _macs(kind: Kind, at: Macs, dense: Macs, everywhere: bool) -> tuple[int, int]:
    """Multiply-adds per example, forward and backward, with the weights that are kept at a mask."""
    f, back = at.forward_kept, at.training_kept - at.forward_kept
    g = back - f
    all_, back_all = dense.forward_dense, dense.training_dense - dense.forward_dense
    if kind == "forward":
        return f, 0
    if kind == "gradient":
        return f, (all_ if everywhere else f) + g
    return f, (all_ + g) + back_all + (back_all if everywhere else back) + 2 * g


def uses_of(model: nn.Module, inputs: Tensor, mask: Mapping[str, Tensor] | None = None) -> Uses:
    """How often an example uses each weight that a mask covers, or could cover; the model is left as it was.

    Args:
        model: on any device.
        inputs: a batch of one example; only its shape matters, and whether it holds floating-point numbers.
        mask: may cover weights that are not prunable by default.

    """
    weights: dict[str, Tensor] = dict(mask or {})
    with suppress(ValueError):  # a network may have none that are prunable, and then nothing is counted
        weights |= prunable_weights(model)
    if inputs.is_floating_point():
        inputs = inputs.to(next((p.dtype for p in model.parameters() if p.is_floating_point()), inputs.dtype))
    with preserve_model(model, training=False, seed=0):
        return count_uses(model, weights, (inputs, None))
