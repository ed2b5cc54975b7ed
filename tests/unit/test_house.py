"""Sizes, names and docstrings of the package; which room imports which is import-linter's."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINES, FUNCTION_LINES, PARAMETERS, FOLDER_FILES = 250, 60, 6, 14
Function = ast.FunctionDef | ast.AsyncFunctionDef
Rule = Callable[[], Iterator[str]]
"""Yields a line for each place that breaks it."""

# How what a rule says begins, and why it is well so.
EXCEPTIONS: dict[str, str] = {}
# Public names that several files may define, and why that confuses nobody.
SHARED_NAMES: dict[str, str] = {
    "apply": "each patch of runtime/megatron_patches/",
    "generate": "each generator of domains/generators/",
    "main": "each verb of commands/ and each program that `python -m` runs",
    "markdown": "called through its module: cards, results",
    "parse_arguments": "each verb's flags",
    "render": "called through its module: a script, a page, Markdown",
    "run": "called through its module: the loop, the probe, a sweep",
    "shard_statistics": "the same in torch and in Triton; log_probs chooses",
    "table": "called through its module: a card, a probe, a run",
    "write": "called through its module: a probe, a sweep's results",
    "write_gradient": "the same in torch and in Triton; log_probs chooses",
}


def _files(folder: str) -> dict[str, ast.Module]:
    """Each Python file under a folder of the checkout, parsed, by its path from the checkout."""
    files = sorted((ROOT / folder).rglob("*.py"))
    return {str(file.relative_to(ROOT)): ast.parse(file.read_text()) for file in files}


PACKAGE = _files("megatron_probsft")


def _functions(node: ast.AST, inside: str = "") -> Iterator[tuple[str, Function, ast.AST]]:
    """Every function with its dotted name and what holds it, also methods and functions within functions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield inside + child.name, child, node
        named = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        yield from _functions(child, f"{inside}{child.name}." if named else inside)


def _public(node: ast.AST) -> list[Function | ast.ClassDef]:
    return [
        child
        for child in ast.iter_child_nodes(node)
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and not child.name.startswith("_")
    ]


def _bound_by_others(function: Function, holder: ast.AST) -> bool:
    """Autograd gives `forward` its arguments by position and asks `backward` for a gradient of each; a
    Triton kernel takes numbers and pointers only."""
    if any(ast.unparse(decorator) == "triton.jit" for decorator in function.decorator_list):
        return True
    bases = [ast.unparse(base) for base in holder.bases] if isinstance(holder, ast.ClassDef) else []
    return function.name in ("forward", "backward") and any("autograd.Function" in base for base in bases)


def _parameters(function: Function) -> int:
    """How many a caller may give: without self and cls."""
    arguments = function.args
    given = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return sum(argument.arg not in ("self", "cls") for argument in given)


def long_files() -> Iterator[str]:
    for path in PACKAGE:
        lines = len((ROOT / path).read_text().splitlines())
        if lines > LINES:
            yield f"{path} has {lines} lines"


def long_functions() -> Iterator[str]:
    for path, tree in PACKAGE.items():
        for name, function, holder in _functions(tree):
            lines = (function.end_lineno or 0) - function.lineno + 1
            if lines > FUNCTION_LINES and not _bound_by_others(function, holder):
                yield f"{path}: {name} has {lines} lines"


def many_parameters() -> Iterator[str]:
    for path, tree in PACKAGE.items():
        for name, function, holder in _functions(tree):
            if _parameters(function) > PARAMETERS and not _bound_by_others(function, holder):
                yield f"{path}: {name} has {_parameters(function)} parameters"


def full_folders() -> Iterator[str]:
    counts: dict[Path, int] = defaultdict(int)
    for path in PACKAGE:
        counts[Path(path).parent] += 1
    for folder, files in counts.items():
        if files > FOLDER_FILES:
            yield f"{folder} has {files} files"


def names_of_two_things() -> Iterator[str]:
    places: dict[str, list[str]] = defaultdict(list)
    for path, tree in PACKAGE.items():
        for node in _public(tree):
            if node.name not in SHARED_NAMES:
                places[node.name].append(path)
    for name, paths in sorted(places.items()):
        if len(paths) > 1:
            yield f"{name} is in {', '.join(paths)}"


def without_docstring() -> Iterator[str]:
    for path, tree in PACKAGE.items():
        for node in _public(tree):
            if ast.get_docstring(node) is None and node.name != "main":  # its module's is the program's
                yield f"{path}: {node.name} has no docstring"


def docstrings_that_are_no_sentence() -> Iterator[str]:
    """A sentence with subject and verb, which says what a caller gets, begins otherwise."""
    for path, tree in PACKAGE.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                words = (ast.get_docstring(node) or "").split(None, 1)
                if words and words[0] in ("Of", "How", "What", "Where", "Whether"):
                    yield f"{path}: {getattr(node, 'name', 'the file')} has a docstring with {words[0]}"


def imports_of_tests() -> Iterator[str]:
    """import-linter sees neither tools/, which is no package, nor imports of files that it cannot name."""
    for folder in ("megatron_probsft", "benchmarks", "examples", "tools"):
        for path, tree in _files(folder).items():
            for node in ast.walk(tree):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                if any(name.partition(".")[0] == "tests" for name in names):
                    yield f"{path} imports tests"


RULES: list[Rule] = [
    long_files, long_functions, many_parameters, full_folders, names_of_two_things, without_docstring,
    docstrings_that_are_no_sentence, imports_of_tests,
]  # fmt: skip


def _excused(problem: str) -> str | None:
    return next((start for start in EXCEPTIONS if problem.startswith(start + " ")), None)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_house_is_in_order(rule: Rule) -> None:
    assert [problem for problem in rule() if not _excused(problem)] == []


def test_every_exception_is_needed() -> None:
    assert {_excused(problem) for rule in RULES for problem in rule()} - {None} == set(EXCEPTIONS)
    assert not SHARED_NAMES.keys() - {node.name for tree in PACKAGE.values() for node in _public(tree)}
