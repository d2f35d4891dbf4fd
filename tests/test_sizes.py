"""Nothing is too long to read: folders, files and functions."""

import ast
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src" / "skeletal"
FILES, LINES, ARGUMENTS = 15, 80, 9  # in a folder without its __init__.py; in a function without its docstring
# Kernels, which LLVM sees whole, take what they take.
KERNELS = ("engine/codegen", "engine/kernels")


def functions(file: Path):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def lines_of(function) -> int:
    told = function.body[0] if ast.get_docstring(function) is not None else None
    return function.end_lineno - function.lineno + 1 - (told.end_lineno - told.lineno + 1 if told else 0)


def test_functions_are_short_and_take_few_arguments_by_position():
    for file in SOURCE.rglob("*.py"):
        for function in functions(file):
            where = f"{file.relative_to(SOURCE)}: {function.name}"
            assert lines_of(function) <= LINES, where
            given = [a.arg for a in [*function.args.posonlyargs, *function.args.args] if a.arg not in ("self", "cls")]
            assert len(given) <= ARGUMENTS or where.startswith(KERNELS), where


def test_folders_hold_few_files():
    for folder in (SOURCE, *SOURCE.rglob("*/")):
        assert len([file for file in folder.glob("*.py") if file.name != "__init__.py"]) <= FILES, folder
