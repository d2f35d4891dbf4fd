"""Which rule each operation of a graph follows. An operation not known here is left whole, never guessed at."""

import operator
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, fx, nn

from skeletal.compaction.rules import reshaping
from skeletal.compaction.rules.of_functions import of_function
from skeletal.compaction.rules.of_modules import Call, of_module
from skeletal.compaction.rules.rule import Rule
from skeletal.compaction.tracing.tracer import acts_as_its_class
from skeletal.core.model.state.reach import reachable, registered


@dataclass
class Known:
    """What is known of a graph."""

    rules: dict[fx.Node, Rule] = field(default_factory=dict)
    holds: dict[fx.Node, str] = field(default_factory=dict)
    """nodes that need all channels of what they read, and why; "" where the reason is obvious"""
    rewrites: list[reshaping.Rewrite] = field(default_factory=list)
    axis: dict[fx.Node, int] = field(default_factory=dict)
    """where tensors that follow rules have their channels"""


def classify(module: fx.GraphModule, mask: Mapping[int, Tensor]) -> Known:
    """Find a rule for each node.

    Args:
        module: traced, with shapes (see `trace`).
        mask: bool, by the id of the parameter.

    """
    known, alone = Known(), _Alone(module)
    harmless: list[fx.Node] = []
    for node in module.graph.nodes:
        if node.op in ("placeholder", "get_attr"):
            continue
        if node.op == "output":
            known.holds[node] = ""
            continue
        rule: Rule | str | None = None
        if "whole" in node.meta:
            rule = f"{node.target} {node.meta['whole']}: kept whole"
        elif node.op == "call_module":
            rule = _of_module(node, module.get_submodule(node.target), known, mask, alone)
        elif "shape" in node.meta:
            rule = of_function(node, known.axis) or reshaping.rule_of(node, known.axis, known.rewrites)
        elif reshaping.is_harmless(node, known.axis):
            harmless.append(node)
            continue
        if rule is None or isinstance(rule, str):
            channels = any(source in known.axis for source in node.all_input_nodes)
            known.holds[node] = rule or (f"{_name(node, module)} is not known" if channels else "")
        else:
            known.rules[node], known.axis[node] = rule, rule.axis
    for node in harmless:
        if strange := reshaping.strange_views(node, known.rules, known.axis):
            known.holds[node] = f"{_name(strange[0], module)} is told the number of channels"
    return known


class _Alone:
    """Which modules are used exactly once, unchanged, with tensors that nothing else reads."""

    def __init__(self, module: fx.GraphModule) -> None:
        nodes = module.graph.nodes
        called = [module.get_submodule(node.target) for node in nodes if node.op == "call_module"]
        self._calls = Counter(id(part) for leaf in called for part in leaf.modules())  # a leaf calls its own parts
        self._owners = Counter(id(tensor) for part in module.modules() for tensor in registered(part))
        for node in nodes:
            if node.op == "get_attr":
                self._owners[id(operator.attrgetter(node.target)(module))] += 1
        for leaf in called:  # it may also read what it has in a list, or what a hook of its own leads to
            own = {id(tensor) for part in leaf.modules() for tensor in registered(part)}
            found = {id(tensor) for tensor, _, _ in reachable(leaf) if isinstance(tensor, Tensor)}
            self._owners.update(found - own)

    def why_not(self, module: nn.Module) -> str:
        tensors = [*module.parameters(), *module.buffers()]
        if tensors and self._calls[id(module)] > 1:
            return "is called more than once"
        if any(self._owners[id(tensor)] > 1 for tensor in tensors):
            return "shares its parameters or buffers"
        if not acts_as_its_class(module):
            return "has hooks"
        return ""


def _name(node: fx.Node, module: fx.GraphModule) -> str:
    if node.op == "call_module":
        return f"{node.target} ({type(module.get_submodule(str(node.target))).__name__})"
    return f"{node.name} ({node.target if isinstance(node.target, str) else getattr(node.target, '__name__', '?')})"


def _of_module(
    node: fx.Node, module: nn.Module, known: Known, mask: Mapping[int, Tensor], alone: _Alone
) -> Rule | str | None:
    """Its rule; or, in words, why it has none."""
    sources = node.all_input_nodes
    if len(sources) != 1 or node.args != (sources[0],) or node.kwargs or "shape" not in node.meta:
        return None
    if "shape" not in sources[0].meta:
        return None
    if reason := alone.why_not(module):
        return f"{node.target} {reason}"
    return of_module(Call(node, module, sources[0], known.axis, mask))
