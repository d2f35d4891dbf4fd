"""What public codes do where they differ from the paper, as arguments of `skeletal.prune`."""

from typing import Any

from torch import Tensor
from torch.nn.functional import cross_entropy, nll_loss

from skeletal.core.choices import require
from skeletal.core.model.batches import Loss
from skeletal.harness.config import AS_IN


def tempered(logits: Tensor, targets: Tensor) -> Tensor:
    """The cross-entropy of logits / 200, with which GRASP's public code scores, and Synaptic-Flow's code for GRASP."""
    return cross_entropy(logits / 200, targets)


# By the names that `Pruning.loss` takes; None is the default of `prune`, cross-entropy.
LOSSES: dict[str, Loss | None] = {"cross-entropy": None, "nll": nll_loss, "tempered": tempered}


def as_in(code: str) -> dict[str, Any]:
    """The choices of a public code as arguments: `prune(model, batches, density=0.01, **as_in("force-code"))`.

    Sampling is not among them: the batches are the caller's, and "grasp-code" takes equally many examples of each
    class. Nor are the method, steps and batches. docs/fidelity.md lists what no argument expresses.

    Args:
        code: "paper", "force-code" (naver/force, the paper's official code), "grasp-code" (alecwangcq/GraSP),
            "synflow-code" (ganguli-lab/Synaptic-Flow) or "pysnip" (shivamsaboo17/PySNIP).

    Returns:
        `loss`, `average` and `bn_mode`.

    Raises:
        ValueError: no such code; names the nearest.

    """
    require("as-in", code, AS_IN)
    row = AS_IN[code]
    return {"loss": LOSSES[row["loss"]], "average": row["average"], "bn_mode": row["bn_mode"]}
