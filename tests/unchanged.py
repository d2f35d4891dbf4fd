"""Compare all that a caller could notice of a model, before and after."""

import random

import numpy as np
import torch


def everything_about(model):
    """All that a caller could notice of a model."""
    return (
        {name: tensor.clone() for name, tensor in model.state_dict(keep_vars=True).items()},
        {name: id(p) for name, p in model.named_parameters()},
        {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()},
        {name: p.requires_grad for name, p in model.named_parameters()},
        [module.training for module in model.modules()],
        [(len(m._forward_hooks), len(m._backward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
        [len(p._backward_hooks or ()) for p in model.parameters()],
        [attributes_of(m) for m in model.modules()],
        torch.get_rng_state(),
        random.getstate(),
        np.random.get_state()[1].tolist(),
    )


def attributes_of(module):
    """What hangs on a module beside parameters, buffers, parts and hooks: values, and contents of containers."""
    registries = {"_parameters", "_buffers", "_modules"}
    return {
        name: contents_of(value)
        for name, value in vars(module).items()
        if name not in registries and not name.endswith("_hooks")
    }


def contents_of(value):
    if isinstance(value, torch.Tensor):
        return str(value.dtype), str(value.grad_fn), value.detach().clone()
    if isinstance(value, dict):
        return {str(key): contents_of(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [contents_of(inner) for inner in value]
    return value if isinstance(value, int | float | str | None) else id(value)


def assert_same(one, two):
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, two)
    elif isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one:
            assert_same(one[key], two[key])
    elif isinstance(one, tuple | list):
        for a, b in zip(one, two, strict=True):
            assert_same(a, b)
    else:
        assert one == two
