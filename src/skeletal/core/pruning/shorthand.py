"""What the field calls a method with settings other than its own: SNIP-MB is SNIP on many batches."""

from skeletal.core.choices import plain

_METHODS = {
    "snip-mb": "snip",
    "grasp-mb": "grasp",
    "iter-snip": "force",
    "iterative-snip": "force",
    "iter-grasp": "grasp-iterative",
    "iterative-grasp": "grasp-iterative",
}
_ON_MANY_BATCHES = ("snip-mb", "grasp-mb")
MANY = 60
"""default number of batches of a one-shot method on many: as many as FORCE sees in its 60 steps"""


def expanded(name: str) -> tuple[str, bool]:
    """The method that a name stands for, and whether it is meant on many batches; any other name stays as it is."""
    return _METHODS.get(plain(name), name), plain(name) in _ON_MANY_BATCHES
