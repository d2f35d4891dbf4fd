"""What the modules of a source tree import, read from the source: statements, and strings that name a module."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

BY_NAME = ("import_module", "__import__")  # functions that import what a string names


def modules_of(source: Path) -> dict[str, Path]:
    """Every module of a package, by its full name; `source` is the package's folder."""
    found = {}
    for file in sorted(source.rglob("*.py")):
        parts = [source.name, *file.relative_to(source).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def _named_by_strings(tree: ast.AST, modules: dict[str, Path]) -> Iterator[str]:
    """Our own modules, wherever a string names one ("skeletal.x.y" or "skeletal.x.y:z"), in a table too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            name = node.value.partition(":")[0]
            if name in modules and re.fullmatch(r"\w+(\.\w+)+(:\w*)?", node.value):
                yield name


def _called_by_string(tree: ast.AST) -> Iterator[str]:
    """What `import_module` and `__import__` are called with; "?" where it is not written there."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = node.func
            name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", None)
            if name in BY_NAME:
                argument = node.args[0] if node.args else None
                yield argument.value if isinstance(argument, ast.Constant) else "?"


def imports_of(module: str, modules: dict[str, Path]) -> set[str]:
    """The full names of what a module imports anywhere in its file; of a name in a module both."""
    file = modules[module]
    tree = ast.parse(file.read_text())
    found = {*_named_by_strings(tree, modules), *_called_by_string(tree)}
    package = module.split(".") if file.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            named = {f"{base}.{alias.name}" for alias in node.names}
            found |= named & modules.keys() or {base, *named}  # a module, or what is in one
    return found - {module}


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected components of more than one module (Tarjan 1972)."""
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    path: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        number[module] = low[module] = len(number)
        path.append(module)
        for other in sorted(arrows.get(module, ())):
            if other not in number:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in path:
                low[module] = min(low[module], number[other])
        if low[module] == number[module]:
            at = path.index(module)
            component = path[at:]
            del path[at:]
            if len(component) > 1:
                found.append(sorted(component))

    for module in sorted(arrows):
        if module not in number:
            visit(module)
    return found
