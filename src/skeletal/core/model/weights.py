"""Which weights may be pruned: the one definition of "prunable"."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy
from torch.optim.swa_utils import AveragedModel

Selection = Callable[[str, Tensor], bool] | Iterable[str] | None


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside a wrapper, with its names unprefixed.

    Wrappers are `DataParallel`, `DistributedDataParallel`, `torch.compile`, `AveragedModel` and timm's averages.

    Raises:
        TypeError: a ScriptModule, whose code and weights torch keeps to itself; or FSDP1, which makes a vector of its
            weights.

    """
    while True:
        if type(model).__name__ == "FullyShardedDataParallel":  # by name: its module takes long to import
            raise TypeError(
                "FullyShardedDataParallel (FSDP1) makes vectors of parameters, in which a mask finds no weights: prune"
                " and use torch.distributed.fsdp.fully_shard, then attach the mask"
            )
        if isinstance(model, torch.jit.ScriptModule):
            raise TypeError("this is a ScriptModule, which is compiled: pass the module that it was made from")
        averages = type(model).__module__.startswith("timm.utils.") and type(model).__name__.startswith("ModelEma")
        if averages or isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel | AveragedModel):
            model = model.get_submodule("module")
        elif isinstance(inner := model._modules.get("_orig_mod"), nn.Module):
            model = inner
        else:
            return model


def refuse_lazy(model: nn.Module) -> None:
    """Make sure that all layers have their shapes: a first forward pass would make others of lazy ones, for good.

    Raises:
        ValueError: one has none; names it.

    """
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(tensor):
            raise ValueError(f"{name} has no shape yet: run the lazy model once on a batch first")


def is_bias(name: str) -> bool:
    """Whether a parameter is called a bias, as in torch: `bias`, `in_proj_bias`, an LSTM's `bias_ih_l0`."""
    leaf = name.rpartition(".")[2]
    return leaf.endswith("bias") or leaf.startswith("bias_")


def weights_and_biases(module: nn.Module) -> tuple[list[str], list[str]]:
    """The names, within the module, of the parameters that multiply its input and of those added to the product."""
    if isinstance(module, nn.Linear | _ConvNd):
        return ["weight"], ["bias"]
    if isinstance(module, nn.MultiheadAttention):  # its output projection is a Linear of its own
        return ["in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"], ["in_proj_bias"]
    if is_transposed_linear(module):
        return ["weight"], ["bias"]
    return [], []


def stored(module: nn.Module, name: str) -> Tensor | None:
    """The parameter of a module that a weight is, or is computed from in its shape: by weight norm or spectral norm.

    Reading the weight itself may write to buffers.
    """
    computed: Any = getattr(module, "parametrizations", {})
    inside = computed[name]._parameters if name in computed else {}
    own = (module._parameters.get(leaf) for leaf in (name, f"{name}_v", f"{name}_orig"))
    places = (*own, inside.get("original"), inside.get("original1"))  # 0 is weight norm's lengths
    return next((weight for weight in places if weight is not None), None)


def is_transposed_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer with a weight of (inputs, outputs), as in GPT-2."""
    return type(module).__name__ == "Conv1D" and type(module).__module__.startswith("transformers.")


def _of_recurrent(module: nn.Module) -> tuple[list[str], list[str]] | None:
    """The same for LSTM, GRU and RNN, whose weights are pruned only if they are named."""
    if not isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return None
    names = list(module._parameters)
    return [name for name in names if name.startswith("weight")], [name for name in names if is_bias(name)]


def prunable_weights(model: nn.Module, select: Selection = None) -> dict[str, nn.Parameter]:
    """The weights of a model that a mask covers, by parameter name, in the order of `named_parameters`.

    By default, the weights of every convolution (1d to 3d, transposed, grouped), linear layer and attention
    projection, as in the paper's appendix A; no biases, norm layers, embeddings or recurrent layers, and
    nothing frozen (`requires_grad` False) or complex. A tied weight has one entry, under its first name, and is
    prunable if one of its uses is.

    Args:
        model: any module.
        select: a function `(name, weight) -> bool` narrows the default; a collection of parameter names
            replaces it, and may name any floating-point parameter (those of LSTM and GRU, norm layers, biases,
            embeddings). A frozen weight that is named is pruned, too, and stays frozen.

    Raises:
        ValueError: nothing is left to prune, a name is unknown, a weight does not hold real floating-point numbers,
            or a lazy layer has no shape yet.

    """
    parameters = dict(model.named_parameters())
    if any(weight.is_meta for weight in parameters.values()):
        raise ValueError(f"{type(model).__name__} is on the meta device and has no weights: materialize it first")
    refuse_lazy(model)

    if select is None or callable(select):
        found = _by_layer(model, parameters)
        if callable(select):
            found = {name: weight for name, weight in found.items() if select(name, weight)}
    else:
        found = _by_name(model, parameters, [select] if isinstance(select, str) else list(select))
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no prunable weights"
            + (" left after the selection" if select is not None else "")
            + ": by default these are the trainable weights of convolutions, linear layers and attention;"
            f" name others with prunable=[...]{_what_there_is(parameters)}"
        )
    return found


def _what_there_is(parameters: dict[str, nn.Parameter]) -> str:
    """Weights a caller might have meant, and why they are not prunable as they are."""
    found = [
        f"{name!r} {tuple(weight.shape)}"
        + ("" if weight.is_floating_point() else f" of {weight.dtype}, which has no score")
        + ("" if weight.requires_grad else ", frozen")
        for name, weight in parameters.items()
        if weight.dim() > 1
    ]
    return f". It has {'; '.join(found[:4])}{'; ...' if len(found) > 4 else ''}" if found else ""


def _by_layer(model: nn.Module, parameters: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    wanted = {
        id(weight)
        for module in model.modules()
        for name in weights_and_biases(module)[0]
        if (weight := module._parameters.get(name)) is not None
    }
    return {
        name: weight
        for name, weight in parameters.items()
        if id(weight) in wanted and weight.requires_grad and weight.is_floating_point() and weight.numel()
    }


def _by_name(model: nn.Module, parameters: dict[str, nn.Parameter], names: list[str]) -> dict[str, nn.Parameter]:
    every = dict(model.named_parameters(remove_duplicate=False))
    unknown = [name for name in names if name not in every]
    if unknown:
        raise ValueError(f"{type(model).__name__} has no parameter {unknown[0]!r}; it has {', '.join(every)}")
    chosen = {id(every[name]) for name in names}
    found = {name: weight for name, weight in parameters.items() if id(weight) in chosen}
    for name, weight in found.items():
        if not weight.is_floating_point():
            raise ValueError(f"{name} is {weight.dtype}; only floating-point weights can be scored")
    return found


def count_biases(model: nn.Module, weights: dict[str, nn.Parameter]) -> int:
    """How many biases the layers of these weights have, beside them: the field's second denominator has both."""
    ours = {id(weight) for weight in weights.values()}
    biases = {}
    for module in model.modules():
        multiply, add = _of_recurrent(module) or weights_and_biases(module)
        if any(id(module._parameters.get(name)) in ours for name in multiply):
            biases |= {id(b): b.numel() for name in add if (b := module._parameters.get(name)) is not None}
    return sum(count for bias, count in biases.items() if bias not in ours)


def left_out(model: nn.Module, weights: dict[str, nn.Parameter]) -> list[str]:
    """Trainable weights of two and more dimensions that are not among these: embeddings, recurrent layers, ..."""
    return [
        name
        for name, weight in model.named_parameters()
        if name not in weights and weight.requires_grad and weight.dim() > 1
    ]
