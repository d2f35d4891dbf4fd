"""The command `skeletal`: each command is a thin call of a public function."""

from skeletal.core.extras import extra

with extra("run"):
    from skeletal.cli.commands import app as app
    from skeletal.cli.commands import main as main
