"""The command `skeletal`: each command is a thin call of a public function."""

import errno
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from skeletal import __version__
from skeletal.cli import config_file
from skeletal.cli.bench import bench
from skeletal.cli.demo import demo
from skeletal.cli.diagnose import diagnose
from skeletal.cli.look import doctor, evaluate, show
from skeletal.cli.run import prune, run, train

app = App(
    name="skeletal",
    version=__version__,
    help="""Find the few connections of a network worth having before training, and train only those.

    Start with `skeletal demo`: it needs no download and takes a minute or two.
    `skeletal COMMAND --help` shows examples.""",
    help_format="markdown",
    suppress_keyboard_interrupt=False,
)
for name, command in {
    "demo": demo,
    "run": run,
    "prune": prune,
    "train": train,
    "eval": evaluate,
    "show": show,
    "diagnose": diagnose,
    "bench": bench,
    "doctor": doctor,
}.items():
    app.command(command, name=name)

app.meta.suppress_keyboard_interrupt = False


@app.meta.default
def _with_config(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    config: Path | None = None,
) -> object:
    """Take settings from a file, then run the command.

    Parameters
    ----------
    config
        TOML file of settings, as `--print-config` writes it; what is on the command line wins

    """
    if config is not None:
        app.config = (config_file.read(config, tokens),)
    return app(tokens)


def main() -> None:
    """Run the command line; errors a user can mend are one message and exit status 1, without a traceback."""
    warnings.showwarning = _show_warning  # type: ignore[bad-assignment]
    app.config = ()
    try:
        app.meta()
    except KeyboardInterrupt as error:
        if not str(error):
            print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if os.environ.get("SKELETAL_TRACEBACK") or not _is_for_the_user(error):
            raise
        _say("error", "red", _message(error))
        sys.exit(1)


def _is_for_the_user(error: Exception) -> bool:
    from skeletal.core.errors import CollapsedError

    return isinstance(error, ValueError | OSError | CollapsedError)


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        about = {
            "ENOSPC": "make room, then run the same command again",
            "EACCES": "choose another place, or change its permissions",
            "ENOTDIR": "a file stands where a folder is wanted; choose another place",
            "EEXIST": "a file stands where a folder is wanted; choose another place",
        }.get(errno.errorcode.get(error.errno or 0, ""), "check the path")
        return f"{error.filename or 'input/output'}: {error.strerror}; {about}"
    return str(error)


def _show_warning(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    # Other libraries' warnings about their own future are nothing the person at the command line can act on.
    if not issubclass(category, DeprecationWarning | FutureWarning | PendingDeprecationWarning):
        _say("warning", "yellow", str(message))


def _say(kind: str, colour: str, message: str) -> None:
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True, soft_wrap=True).print(Text(f"{kind}: ", style=f"bold {colour}") + Text(message))
