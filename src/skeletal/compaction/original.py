"""The way back from a compiled network to the original one, without keeping a dense copy of it."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from skeletal.compaction.compact import Compact, put_back, refuse_moved, take_extra_states
from skeletal.compaction.slices import gather
from skeletal.compaction.tracing.trace import state_tensors
from skeletal.core.model.tensors import Tensors


class Original:
    """A network's architecture and all of its values that are not 0.

    Masked weights are kept values and their positions; in the blueprint, tensors without memory stand for them.
    """

    def __init__(self, compacted: Compact) -> None:
        model, self.slices, self.relied_on = compacted.original, compacted.slices, compacted.relied_on
        weights = dict(model.named_parameters())
        self.kept = {name: keep.flatten().nonzero().flatten() for name, keep in compacted.original_mask.items()}
        self.values = {name: weights[name].detach().flatten()[kept] for name, kept in self.kept.items()}
        self.stand_ins = {
            name: nn.Parameter(torch.empty_like(weights[name], device="meta"), weights[name].requires_grad)
            for name in self.kept
        }
        # deepcopy takes these as copied already, so ties between modules stay as they are.
        self.blueprint = copy.deepcopy(model, {id(weights[name]): self.stand_ins[name] for name in self.kept})

    def to_dense(self, values: Tensors) -> nn.Module:
        """The original architecture, with the values of a compact network in it.

        Args:
            values: dense, by name, of the compact network's parameters and buffers, in the types and on the device
                that the result is to have; what is missing is as it was.

        """
        memo = {}
        for name, stand_in in self.stand_ins.items():
            kept = self.values[name]
            weight = torch.zeros(stand_in.numel(), dtype=kept.dtype, device=kept.device)
            weight[self.kept[name]] = kept
            memo[id(stand_in)] = nn.Parameter(weight.view(stand_in.shape), stand_in.requires_grad)
        model = copy.deepcopy(self.blueprint, memo)
        put_back(model, values, self.slices)
        return model

    def take(self, dense: nn.Module, state: Mapping[str, Any]) -> tuple[Tensors, list[str], list[str]]:
        """The values of the compact network, taken from a `state_dict` of the original one.

        What the state does not name stays, and pruned weights in it count as 0. From now on, anything that the compact
        network has no place for also takes its value from here.

        Args:
            dense: the original network with its current values; used up.
            state: of that.

        Returns:
            Values, names that were missing, and names that do not belong there.

        Raises:
            RuntimeError: a tensor of another shape.
            MaskError: a channel was removed because its bias would stay 0, but that bias is not 0.

        """
        missing, unexpected = dense.load_state_dict(state, strict=False)
        there = {name: value.detach() for name, value in state_tensors(dense).items()}
        refuse_moved(there, self.relied_on, "compile")
        for name, kept in self.kept.items():
            whole, kept = there[name], kept.to(there[name].device)
            self.values[name] = whole.flatten()[kept]
            there[name] = torch.zeros_like(whole).view(-1).index_copy(0, kept, self.values[name]).view_as(whole)
        for name, tensor in state_tensors(self.blueprint).items():
            if not tensor.is_meta:
                tensor.data = there[name]
        take_extra_states(self.blueprint, dense)
        return gather(there, self.slices), list(missing), list(unexpected)
