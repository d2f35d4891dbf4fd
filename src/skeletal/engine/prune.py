"""`skeletal.prune`: the core's function, which also knows the sparse engine by name."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from skeletal.core.choices import require
from skeletal.core.model.distributed import together
from skeletal.core.model.gradients import Derivatives
from skeletal.core.pruning import prune as core

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def _knowing_the_engine(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """The same function, whose `engine` may be "sparse"; numba is loaded only if it is asked for."""

    @together()  # numba may be missing on one rank
    @wraps(function)
    def with_engine(*arguments: Arguments.args, **options: Arguments.kwargs) -> Result:
        if isinstance(engine := options.get("engine"), str):
            require("engine", engine, (Derivatives.name, "sparse"))
            if engine == "sparse":
                options["engine"] = _skeletons()
        return function(*arguments, **options)

    return with_engine


def _skeletons() -> type[Derivatives]:
    try:
        from skeletal.engine.scoring import SkeletonDerivatives
    except ImportError as error:
        raise ImportError(
            f"engine='sparse' needs numba, which does not load here ({error}): use engine='dense'"
        ) from error
    return SkeletonDerivatives


prune = _knowing_the_engine(core.prune)
