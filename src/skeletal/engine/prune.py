"""`skeletal.prune`: the core's function, which also knows the sparse engine and whole channels by name."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from skeletal.core.choices import require
from skeletal.core.model.distributed import together
from skeletal.core.model.gradients import Derivatives
from skeletal.core.patterns import names
from skeletal.core.pruning import prune as core

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def _knowing_names(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """The same function, whose `engine` may be "sparse" and `pattern` "channels"; both load only if asked for."""

    @together()  # numba may be missing on one rank
    @wraps(function)
    def with_names(*arguments: Arguments.args, **options: Arguments.kwargs) -> Result:
        if isinstance(engine := options.get("engine"), str):
            require("engine", engine, (Derivatives.name, "sparse"))
            if engine == "sparse":
                options["engine"] = _skeletons()
        if isinstance(pattern := options.get("pattern"), str) and names.canonical(pattern) == names.CHANNELS:
            from skeletal.compaction.coupling import couple
            from skeletal.core.patterns.channels import Channels

            options["pattern"] = Channels(names.CHANNELS, couple)
        return function(*arguments, **options)

    return with_names


def _skeletons() -> type[Derivatives]:
    try:
        from skeletal.engine.scoring import SkeletonDerivatives
    except ImportError as error:
        raise ImportError(
            f"engine='sparse' needs numba, which does not load here ({error}): use engine='dense'"
        ) from error
    return SkeletonDerivatives


prune = _knowing_names(core.prune)
