"""Packages that only some parts need, and what to install for them."""

from collections.abc import Generator
from contextlib import contextmanager


class MissingExtraError(ModuleNotFoundError):
    """A package that an extra of skeletal brings is not installed."""


@contextmanager
def extra(name: str) -> Generator[None]:
    """Inside the `with` block, import packages that the extra `name` of pyproject.toml brings.

    Raises:
        MissingExtraError: it is not installed; names the package and the command that installs it.

    """
    try:
        yield
    except ModuleNotFoundError as error:
        if isinstance(error, MissingExtraError) or (error.name or "").partition(".")[0] == "skeletal":
            raise
        raise MissingExtraError(
            f"this needs {error.name}, which is not installed: pip install 'skeletal[{name}]'", name=error.name
        ) from None
