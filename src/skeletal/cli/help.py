"""Help on one screen: the options used most. `--help-all` shows every option."""

from typing import Any

from cyclopts.help import DefaultFormatter, HelpEntry, HelpPanel

ALL = "--help-all"
SHARED = ("Network and data", "Pruning", "Training")
"""groups of options that several commands have"""
MOST_USED = {
    "--model", "--data", "--data-dir", "--seed", "--device",
    "--method", "--density", "--sparsity", "--steps",
    "--epochs", "--batch-size", "--lr", "--update",
}  # fmt: skip
"""options of those groups that a short help shows"""
SELDOM = {"--wait", "--name", "--executor", "--slurm", "--jobs", "--measure-batches", "--together", "--plan"}
"""a command's own options that a short help leaves out"""


NARROWEST = 40
"""columns that help is written in at least; where no name fits, cyclopts wraps them for ever"""


class Help(DefaultFormatter):
    """A panel of options without the obvious: defaults that say no, and the options that say it."""

    def __call__(self, console: Any, options: Any, panel: HelpPanel) -> None:
        """Print one panel."""
        entries = [self._plain(entry) for entry in panel.entries if self.shows(panel, entry)]
        console.width = max(console.width, NARROWEST)
        if entries:
            super().__call__(console, options, panel.copy(entries=entries))

    def shows(self, panel: HelpPanel, entry: HelpEntry) -> bool:
        """Whether an option is shown."""
        return True

    def _plain(self, entry: HelpEntry) -> HelpEntry:
        return entry.copy(default=None, negative_names=()) if entry.default == "False" else entry


class ShortHelp(Help):
    """The options used most."""

    def shows(self, panel: HelpPanel, entry: HelpEntry) -> bool:
        """Whether an option is used often, or has to be given."""
        if panel.format == "command" or entry.required:
            return ALL not in entry.names
        used = MOST_USED & set(entry.names)
        return bool(used) if panel.title in SHARED else not SELDOM & set(entry.names)
