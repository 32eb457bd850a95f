"""Which names the file of a main module binds: always, or only when it is run as the program.

Read in the source, when a name of the main module is first sent to a process that has imported
it anew: nothing else tells what stands below ``if __name__ == "__main__":``.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import ast


class Names(NamedTuple):
    """The names that a file binds at its top level."""

    #: In each process that imports it.
    always: frozenset[str]
    #: Only in the one that runs it.
    when_run: frozenset[str]


@functools.cache
def names_of(path: str) -> Names | None:
    """Return the names that a file binds; None if it cannot be read as Python."""
    import ast  # noqa: PLC0415  most programs that import mpkit never need it

    try:
        with open(path, "rb") as file:
            tree = ast.parse(file.read())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return None
    always: set[str] = set()
    when_run: set[str] = set()
    _collect(tree, always, when_run)
    return Names(frozenset(always), frozenset(when_run - always))


def _collect(node: ast.AST, names: set[str], when_run: set[str]) -> None:
    """Put what a statement binds at the top level, and those in it, into ``names``.

    Or into ``when_run``, where a condition says so.
    """
    import ast  # noqa: PLC0415

    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            names.add(node.name)
        case ast.Lambda():  # binds nothing here
            pass
        case ast.Name(id=name, ctx=ast.Store()):
            names.add(name)
        case ast.alias():
            names.add((node.asname or node.name).partition(".")[0])
        case ast.If() if (run := _says_that_it_is_run(node.test)) is not None:
            for statement in node.body:
                _collect(statement, when_run if run else names, when_run)
            for statement in node.orelse:
                _collect(statement, names if run else when_run, when_run)
        case _:
            for child in ast.iter_child_nodes(node):
                _collect(child, names, when_run)


def _says_that_it_is_run(test: ast.expr) -> bool | None:
    """Tell what a condition says: this is the program, or is not; None if neither."""
    import ast  # noqa: PLC0415

    match test:
        case ast.BoolOp(op=ast.And(), values=[*values]):
            said = [_says_that_it_is_run(value) for value in values]
            return True if True in said else None
        case (
            ast.Compare(
                left=ast.Name(id="__name__"),
                ops=[operator],
                comparators=[ast.Constant(value="__main__")],
            )
            | ast.Compare(
                left=ast.Constant(value="__main__"),
                ops=[operator],
                comparators=[ast.Name(id="__name__")],
            )
        ):
            equal = isinstance(operator, ast.Eq)
            return equal if equal or isinstance(operator, ast.NotEq) else None
        case _:
            return None
