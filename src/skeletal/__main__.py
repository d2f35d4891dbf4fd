"""The command `skeletal`, also as `python -m skeletal`."""

import sys

from skeletal.core.extras import MissingExtraError


def main() -> None:
    """Run the command line; without the packages it needs, say in one line how to get them, and exit with status 1."""
    try:
        from skeletal.cli import main as command
    except MissingExtraError as missing:
        sys.exit(f"error: {missing}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    command()


if __name__ == "__main__":
    main()
