"""How much a reader has to hold in mind: five counts over serving/ and the scripts, which may fall but not rise.

`python tests/test_shape.py` prints them.
"""

import ast
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILES = sorted([*(ROOT / "serving").rglob("*.py"), *ROOT.glob("run_*.py"), *ROOT.glob("*_parts.py")])
SOURCES = {path.relative_to(ROOT).as_posix(): path.read_text() for path in FILES}
TREES = {name: ast.parse(text) for name, text in SOURCES.items()}

Function = ast.FunctionDef | ast.AsyncFunctionDef

MOST_PASSED_FUNCTIONS = 4.0  # in 1,000 lines
LONGEST_FUNCTION, LONGEST_MODULE = 42, 250  # lines; of a function without its docstring
LEAST_DOCUMENTED = 0.9
MOST_IGNORED_TYPES = 8


def functions() -> Iterator[tuple[str, Function]]:
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, Function):
                yield name, node


def passed_functions() -> list[str]:
    """Where behaviour is passed around: lambdas, partials, and parameters that are functions."""
    found = []
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            is_partial = isinstance(node, ast.Call) and ast.unparse(node.func).endswith("partial")
            if isinstance(node, ast.Lambda) or is_partial:
                found.append(f"{name}:{node.lineno}")
    for name, function in functions():
        parameters = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
        taken = [one.arg for one in parameters if one.annotation and "Callable" in ast.unparse(one.annotation)]
        found += [f"{name}:{function.lineno} {parameter}" for parameter in taken]
    return found


def passed_in_1000_lines() -> float:
    return 1000 * len(passed_functions()) / sum(len(text.splitlines()) for text in SOURCES.values())


def length(function: Function) -> int:
    docstring = ast.get_docstring(function, clean=False)
    return (function.end_lineno or 0) - function.lineno + 1 - len((docstring or "").splitlines())


def longest_function() -> tuple[int, str]:
    return max((length(function), f"{name}: {function.name}") for name, function in functions())


def longest_module() -> tuple[int, str]:
    return max((len(text.splitlines()), name) for name, text in SOURCES.items())


def public(nodes: Sequence[ast.stmt]) -> Iterator[Function]:
    """The functions and methods that other modules may call."""
    for node in nodes:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public(node.body)
        elif isinstance(node, Function) and not node.name.startswith("_"):
            yield node


def documented() -> float:
    """The share of public functions and methods that have a docstring."""
    has = [bool(ast.get_docstring(function)) for tree in TREES.values() for function in public(tree.body)]
    return sum(has) / len(has)


def ignored_types() -> int:
    return sum(text.count("type: ignore") for text in SOURCES.values())


def test_data_travels_and_functions_do_not() -> None:
    assert passed_in_1000_lines() <= MOST_PASSED_FUNCTIONS, passed_functions()


def test_each_function_and_each_module_reads_in_one_go() -> None:
    assert longest_function() <= (LONGEST_FUNCTION, "~")
    assert longest_module() <= (LONGEST_MODULE, "~")


def test_public_functions_say_what_they_do() -> None:
    assert documented() >= LEAST_DOCUMENTED


def test_types_are_ignored_only_where_a_library_has_none() -> None:
    assert ignored_types() <= MOST_IGNORED_TYPES


if __name__ == "__main__":
    print(f"functions passed around: {passed_in_1000_lines():.1f} in 1,000 lines")
    print("longest function: {} lines, {}".format(*longest_function()))
    print("longest module: {} lines, {}".format(*longest_module()))
    print(f"public functions with a docstring: {documented():.0%}")
    print(f"type: ignore: {ignored_types()}")
