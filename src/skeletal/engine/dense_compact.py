"""What `skeletal.compile` makes where there are no sparse kernels, as on a GPU: a compact network, channels last."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from skeletal.compaction.compact import Compact, compact
from skeletal.compaction.report import Report

MULTIPLE_OF = 8
"""channels: 16 bytes of a half-precision map, which the matrix units of GPUs read at once"""


def dense_compact(model: nn.Module, mask: Mapping[str, Tensor], batch: Any) -> Compact:
    """A network without its dead channels, of widths that GPUs multiply fast, with channels last in memory."""
    compacted = compact(model, mask, batch, multiple_of=MULTIPLE_OF)
    for parameter in compacted.model.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return compacted


def gain(report: Report, device: torch.device) -> str:
    """What there is to gain, in numbers that do not depend on the GPU."""
    without = f"{device.type} has no sparse kernels: pruned weights are zeros that are multiplied"
    if report.whole is not None:
        return f"{without}, and nothing is gained: the network is left whole"
    before, after = report.macs
    layers = [layer for layer in report.layers if layer.inputs[0] and layer.outputs[0]]
    narrower = sum(layer.inputs[1] < layer.inputs[0] or layer.outputs[1] < layer.outputs[0] for layer in layers)
    filled = sum(layer.padding for layer in layers)
    return (
        f"{without}. Without dead channels {after:,} of {before:,} multiply-adds are left"
        f" ({100 * after / max(before, 1):.1f}%); {narrower} of {len(layers)} layers are narrower, with"
        f" {filled:,} channels of zeros to make widths multiples of {MULTIPLE_OF}. No time was measured"
    )
