"""`python -m skeletal` is the command `skeletal`."""

from skeletal.cli import main

main()
