"""Networks of the user's own, by `package.module:function`."""

import ast
import hashlib
import inspect
import os
import sys
from collections.abc import Callable
from functools import lru_cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from skeletal.core.model.preserve import preserve_mode


def is_function(name: str) -> bool:
    """Whether a name is written as `package.module:function`."""
    module, colon, function = name.partition(":")
    return bool(colon) and all(part.isidentifier() for part in [*module.split("."), function])


def instead_of_file(name: str) -> str | None:
    """What to write where a name is that of a Python file, or of a module in this folder; None if it is neither.

    The file is read, not run.
    """
    file, _, called = name.partition(":")
    path = Path(file if file.endswith(".py") else f"{file.replace('.', '/')}.py")
    if not file.endswith(".py") and (called or not path.is_file()):
        return None
    here, path = Path.cwd(), Path(os.path.abspath(path))
    parts = path.relative_to(here).with_suffix("").parts if path.is_relative_to(here) else [path.stem]
    module = ".".join(parts)
    defined = [called] if called else _defined_in(path)
    if len(defined) == 1:
        return f"{module}:{defined[0]}"
    return f"{module}:FUNCTION" + (f", where FUNCTION is one of {', '.join(defined)}" if defined else "")


def _defined_in(path: Path) -> list[str]:
    """The functions and classes that a file defines for others; none where it cannot be read."""
    try:
        body = ast.parse(path.read_bytes()).body
    except (OSError, SyntaxError, ValueError):
        return []
    kinds = ast.FunctionDef | ast.ClassDef
    return [part.name for part in body if isinstance(part, kinds) and not part.name.startswith("_")]


def builder(name: str) -> Callable[..., nn.Module]:
    """What builds the network: the function, or the class, called with those of our arguments that it takes.

    Raises as `function` does.
    """
    return partial(_build, name, function(name))


def digest(name: str) -> str | None:
    """A digest of the file in which a network's function is written; None if there is no such function or file."""
    try:
        found = function(name)
        where = found if inspect.isroutine(found) or inspect.isclass(found) else import_module(name.partition(":")[0])
        return _digest(where)
    except (ValueError, TypeError, OSError):
        return None


@lru_cache
def _digest(where: Any) -> str | None:
    """Of what was imported: edits after the first call, as while a mask is being found, change the file alone."""
    file = inspect.getsourcefile(inspect.unwrap(where))
    return None if file is None else hashlib.sha256(Path(file).read_bytes()).hexdigest()[:12]


def function(name: str) -> Callable[..., Any]:
    """The function, or the class, of that name.

    Modules are also looked for in the working folder.

    Raises:
        ValueError: there is no such module or function, or the module cannot be imported; says why, and where it was
            looked for.

    """
    module_name, _, attribute = name.partition(":")
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and not f"{module_name}.".startswith(f"{error.name}."):
            raise ValueError(f"the module of {name!r} needs {error.name}, which is not installed") from error
        raise ValueError(
            f"no module {module_name!r} for the network {name!r}: put it in {here}, or install it"
        ) from error
    except Exception as error:  # a stranger's code
        raise ValueError(f"the module of {name!r} cannot be imported: {type(error).__name__}: {error}") from error
    found = getattr(module, attribute, None)
    if not callable(found):
        functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ValueError(f"{module_name} has no function {attribute!r}; it has {', '.join(functions) or 'none'}")
    return found


def _build(name: str, build: Callable[..., Any], **sizes: int) -> nn.Module:
    signature = inspect.signature(build)
    parameters = signature.parameters.values()
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    taken = {parameter.name for parameter in parameters}
    given = {key: size for key, size in sizes.items() if takes_all or key in taken}
    try:
        signature.bind(**given)
    except TypeError as error:
        raise ValueError(
            f"{name}{signature} cannot be called ({error}): it gets num_classes, in_channels and image_size, so give"
            " other arguments a default"
        ) from error
    model = build(**given)
    if not isinstance(model, nn.Module):
        raise ValueError(f"{name} gives {type(model).__name__}, not a torch.nn.Module")
    if any(is_lazy(tensor) for tensor in [*model.parameters(), *model.buffers()]):
        _give_shapes(name, model, sizes)
    for weight, value in model.named_parameters():
        if value.is_meta or value.dtype != torch.float32:
            what = "on the meta device" if value.is_meta else f"of {value.dtype}"
            raise ValueError(f"{name} gives a network whose {weight} is {what}: give one in float32, on the CPU")
    return model


def _give_shapes(name: str, model: nn.Module, sizes: dict[str, int]) -> None:
    """Run a network with lazy layers on an image, from which they learn their sizes."""
    image = torch.zeros(1, sizes["in_channels"], sizes["image_size"], sizes["image_size"])
    try:
        with preserve_mode(model, training=False), torch.no_grad():
            model(image)
    except Exception as error:  # a stranger's code
        raise ValueError(
            f"{name} has lazy layers and cannot compute an image of {tuple(image.shape[1:])}, from which they would"
            f" learn their sizes: {type(error).__name__}: {error}"
        ) from error
