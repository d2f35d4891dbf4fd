"""skeletal: find the few connections of a network worth having before training, and train only those.

The public names are below. They load on first use, so that `skeletal --help` answers without torch
and `import skeletal` without torchvision, accelerate or matplotlib.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from skeletal.core.version import __version__ as __version__

if TYPE_CHECKING:
    from skeletal.compaction.compact import compact as compact
    from skeletal.core.diagnosis.diagnose import Diagnosis as Diagnosis
    from skeletal.core.diagnosis.diagnose import diagnose as diagnose
    from skeletal.core.diagnosis.optimality import local_optimality as local_optimality
    from skeletal.core.errors import CollapsedError as CollapsedError
    from skeletal.core.errors import CollapseWarning as CollapseWarning
    from skeletal.core.errors import MaskError as MaskError
    from skeletal.core.errors import NonFiniteError as NonFiniteError
    from skeletal.core.masks.mask import Mask as Mask
    from skeletal.core.masks.repair import repair as repair
    from skeletal.core.pruning.methods import METHODS as METHODS
    from skeletal.core.pruning.methods import Method as Method
    from skeletal.core.updates.gradual import Gradual as Gradual
    from skeletal.core.updates.rigl import RigL as RigL
    from skeletal.core.updates.sparse_evolution import SET as SET
    from skeletal.core.updates.update import MaskUpdate as MaskUpdate
    from skeletal.engine.compile import compile as compile
    from skeletal.engine.prune import prune as prune
    from skeletal.harness import models as models
    from skeletal.harness.runs.load import load_run as load_run

_HOME = {
    "prune": "skeletal.engine.prune:prune",
    "Mask": "skeletal.core.masks.mask:Mask",
    "METHODS": "skeletal.core.pruning.methods:METHODS",
    "Method": "skeletal.core.pruning.methods:Method",
    "MaskUpdate": "skeletal.core.updates.update:MaskUpdate",
    "SET": "skeletal.core.updates.sparse_evolution:SET",
    "RigL": "skeletal.core.updates.rigl:RigL",
    "Gradual": "skeletal.core.updates.gradual:Gradual",
    "diagnose": "skeletal.core.diagnosis.diagnose:diagnose",
    "Diagnosis": "skeletal.core.diagnosis.diagnose:Diagnosis",
    "local_optimality": "skeletal.core.diagnosis.optimality:local_optimality",
    "repair": "skeletal.core.masks.repair:repair",
    "compact": "skeletal.compaction.compact:compact",
    "compile": "skeletal.engine.compile:compile",
    "CollapsedError": "skeletal.core.errors:CollapsedError",
    "CollapseWarning": "skeletal.core.errors:CollapseWarning",
    "MaskError": "skeletal.core.errors:MaskError",
    "NonFiniteError": "skeletal.core.errors:NonFiniteError",
    "load_run": "skeletal.harness.runs.load:load_run",
    "models": "skeletal.harness.models:",
}
__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'skeletal' has no attribute {name!r}")
    module, _, attribute = _HOME[name].partition(":")
    found = import_module(module)
    value = getattr(found, attribute) if attribute else found
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
