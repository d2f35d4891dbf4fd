"""Every command by its name, and what the person at the command line sees of errors and warnings."""

import errno
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from io import TextIOWrapper
from itertools import islice, takewhile
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from skeletal.cli import config_file
from skeletal.cli.advise import advise
from skeletal.cli.bench import bench
from skeletal.cli.demo import demo
from skeletal.cli.diagnose import diagnose
from skeletal.cli.estimate import estimate
from skeletal.cli.help import ALL, Help, ShortHelp
from skeletal.cli.inspect import doctor, evaluate, show
from skeletal.cli.results import compare, export
from skeletal.cli.run import prune, run, train
from skeletal.cli.sanity import sanity
from skeletal.cli.strict import only_whole_numbers
from skeletal.cli.study import study
from skeletal.core.launcher import launched
from skeletal.core.progress import shown, stage
from skeletal.core.version import __version__
from skeletal.harness.output.bars import for_person

_PACKAGE = Path(__file__).parents[1]
"""whose own errors of type say what to do"""

app = App(
    name="skeletal",
    version=__version__,
    help="""Find the few connections of a network worth having before training, and train only those.

    Start with `skeletal demo`: it needs no download and takes a minute or two.
    `skeletal COMMAND --help` shows examples.""",
    help_format="markdown",
    help_flags=("--help", "-h", ALL),
    help_formatter=ShortHelp(),
    help_epilogue=f"`{ALL}` shows all options.",
    default_parameter=Parameter(negative_iterable=()),
    suppress_keyboard_interrupt=False,
)
for name, command in {
    "demo": demo,
    "run": run,
    "estimate": estimate,
    "prune": prune,
    "train": train,
    "eval": evaluate,
    "show": show,
    "compare": compare,
    "export": export,
    "diagnose": diagnose,
    "advise": advise,
    "sanity": sanity,
    "bench": bench,
    "doctor": doctor,
}.items():
    app.command(command, name=name)
app.command(study)

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
        TOML file of settings, as `--print-config` writes it; the command line wins

    """
    if config is not None:
        app.config = (config_file.read(config, tokens), config_file.note, only_whole_numbers)
    return _as_one(tokens) if launched() > 1 else app(tokens)


def _as_one(tokens: tuple[str, ...]) -> object:
    """Run a command in all the processes that torchrun or accelerate has launched."""
    if tokens and tokens[0] not in ("run", "prune", "train", "eval"):
        raise ValueError(f"{tokens[0]} runs in one process: torchrun is for run, prune, train and eval")
    from skeletal.core.model.distributed import together
    from skeletal.harness.training.processes import group

    with group(), together():
        return app(tokens)


def main() -> None:
    """Run the command line; errors a user can fix are one message and exit status 1, without a traceback."""
    _open_outputs()
    warnings.showwarning = _show_warning  # type: ignore[bad-assignment]
    app.config = (config_file.note, only_whole_numbers)
    app.help_formatter = Help() if ALL in sys.argv else ShortHelp()
    try:
        try:
            with shown(os.environ.get("RANK", "0") == "0", for_person), stage(_named(sys.argv[1:]), bar=False):
                app.meta()
        finally:
            sys.stdout.flush()
        _end_well()
    except SystemExit as end:
        if not end.code:
            _end_well()
        raise
    except KeyboardInterrupt as error:
        if not str(error):
            print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # `... --json | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes at the end
        sys.exit(141)
    except Exception as error:
        if os.environ.get("SKELETAL_TRACEBACK") or not _is_for_the_user(error):
            raise
        if not _told_by_another(error):
            _say("error", "red", _message(error))
        sys.exit(1)


def _open_outputs() -> None:
    """Let no output end a command: one that is closed (`>&-`), or that cannot write a character."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (until the process ends)
        elif isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _named(tokens: Sequence[str]) -> str:
    """What the command is doing, until something says more."""
    names = takewhile(lambda token: not token.startswith("-"), tokens)
    return " ".join(["skeletal", *islice(names, 2)])


def _end_well() -> None:
    """End this one of several processes without taking the interpreter down.

    A torch thread that still wants the interpreter by then is unwound through C++ code, and aborts a process that has
    finished its work; the launcher counts that as a failure (seen now and then on a busy machine).
    """
    if launched() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _is_for_the_user(error: Exception) -> bool:
    from skeletal.core.errors import CollapsedError
    from skeletal.core.extras import MissingExtraError
    from skeletal.core.model.distributed import PeerError

    if isinstance(error, ValueError | OSError | CollapsedError | MissingExtraError | PeerError):
        return True
    places = traceback.extract_tb(error.__traceback__)
    return isinstance(error, TypeError) and bool(places) and Path(places[-1].filename).is_relative_to(_PACKAGE)


def _told_by_another(error: Exception) -> bool:
    from skeletal.core.model.distributed import SHOWN

    return SHOWN in getattr(error, "__notes__", ())


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        about = {
            "ENOSPC": "make room, then run the same command again",
            "EDQUOT": "make room, then run the same command again",
            "EROFS": "choose another place, or mount it for writing",
            "EACCES": "choose another place, or change its permissions",
            "ENOTDIR": "there is a file where a folder is needed; choose another place",
            "EEXIST": "there is a file where a folder is needed; choose another place",
        }.get(errno.errorcode.get(error.errno or 0, ""), "check the path")
        return f"{error.filename or 'input/output'}: {error.strerror}; {about}"
    return str(error)


def _show_warning(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    # The person at the command line cannot act on other libraries' warnings about their own future.
    if not issubclass(category, DeprecationWarning | FutureWarning | PendingDeprecationWarning):
        _say("warning", "yellow", str(message))


def _say(kind: str, colour: str, message: str) -> None:
    from rich.console import Console
    from rich.text import Text

    kind = f"{kind}, rank {rank}" if (rank := os.environ.get("RANK", "0")) != "0" else kind
    Console(stderr=True, soft_wrap=True).print(Text(f"{kind}: ", style=f"bold {colour}") + Text(message))
