"""The tables for who comes from another library (docs/howto/from-*.md) name what there is.

In a row, code in the first column is the other library's, and in the second mpkit's. In
both each name, method and keyword has to exist, where the library is installed; and each
method of the other library's pool has to be in its table.
"""

from __future__ import annotations

import ast
import asyncio
import concurrent.futures
import inspect
import multiprocessing.connection
import multiprocessing.pool
import re
from dataclasses import dataclass, field
from typing import Any

import pytest

import mpkit
from mpkit._engine.settings import _KNOWN as POOL_KEYWORDS
from mpkit._task.options import OptionNames
from tests.documents import ROOT

#: What stands for a value of the reader's, in either column.
PLACEHOLDERS = {
    "f",
    "g",
    "x",
    "y",
    "key",
    "xs",
    "ys",
    "pairs",
    "data",
    "array",
    "setup",
    "clean",
    "pin",
    "context",
    "lock",
    "thread",
    "queue",
    "executor",
    "futures",
    "signal",
    "int",
    "str",
    "zip",
    "tqdm",
    "delayed",
}


@dataclass(frozen=True)
class Of:
    """An instance of a class, of which the class is all that is known."""

    kind: Any


@dataclass(frozen=True)
class Method:
    """A method of an `Of`."""

    function: Any


@dataclass
class Names:
    """What names mean in a column, and which of them were used."""

    known: dict[str, Any]
    used: set[str] = field(default_factory=set)

    def meaning(self, node: ast.expr) -> Any:
        """Return what an expression is, or an `Of`, or None if that is open. Fail if it is wrong."""
        match node:
            case ast.Name(name):
                assert name in self.known or name in PLACEHOLDERS, f"what is {name}?"
                return self.known.get(name)
            case ast.Attribute(base, name):
                return self._attribute(self.meaning(base), name)
            case ast.Call():
                return self._called(node)
            case _:
                # Names that a comprehension binds are placeholders like all others.
                for part in ast.iter_child_nodes(node):
                    iterated = part.iter if isinstance(part, ast.comprehension) else part
                    if isinstance(iterated, ast.expr):
                        self.meaning(iterated)
                return None

    def _attribute(self, base: Any, name: str) -> Any:
        if base is None:
            return None
        owner = base.kind if isinstance(base, Of) else base
        assert hasattr(owner, name), f"{owner} has no {name}"
        found = getattr(owner, name)
        if not isinstance(base, Of):
            return found
        self.used.add(name)
        if found is mpkit.TaskPool.executor:
            return Of(mpkit.PoolExecutor)
        return Method(found) if inspect.isfunction(found) else None

    def _called(self, call: ast.Call) -> Any:
        called = self.meaning(call.func)
        for argument in (*call.args, *(keyword.value for keyword in call.keywords)):
            self.meaning(argument)
        if called is None or isinstance(called, Of):
            return None
        given: list[Any] = [item for item in call.args if not isinstance(item, ast.Starred)]
        if isinstance(called, Method):
            called, given = called.function, [None, *given]
        keywords = {keyword.arg for keyword in call.keywords if keyword.arg is not None}
        inspect.signature(called).bind_partial(*given, **dict.fromkeys(keywords))
        if called is mpkit.TaskPool.options:
            assert keywords <= set(OptionNames.__annotations__)
            return Of(mpkit.Calls)
        assert called is not mpkit.TaskPool or keywords <= POOL_KEYWORDS
        return Of(called) if inspect.isclass(called) else None


OURS = {
    "mpkit": mpkit,
    "pool": Of(mpkit.TaskPool),
    "task": Of(mpkit.Task),
    "job": Of(mpkit.Job),
    "here": Of(mpkit.Channel),
    "there": Of(mpkit.Channel),
}


def of_multiprocessing() -> dict[str, Any]:
    return {
        **vars(multiprocessing),
        "Pool": multiprocessing.pool.Pool,
        "pool": Of(multiprocessing.pool.Pool),
        "result": Of(multiprocessing.pool.AsyncResult),
        "process": Of(multiprocessing.Process),
        "conn": Of(multiprocessing.connection.Connection),
    }


def of_concurrent_futures() -> dict[str, Any]:
    names = {
        "executor": Of(concurrent.futures.ProcessPoolExecutor),
        "future": Of(concurrent.futures.Future),
        "loop": Of(asyncio.AbstractEventLoop),
        "BrokenProcessPool": concurrent.futures.process.BrokenProcessPool,
        "get_reusable_executor": pytest.importorskip("loky").get_reusable_executor,
    }
    listed = {name: getattr(concurrent.futures, name) for name in concurrent.futures.__all__}
    return {**listed, **names}


def of_joblib() -> dict[str, Any]:
    return vars(pytest.importorskip("joblib"))


def of_mpire() -> dict[str, Any]:
    mpire = pytest.importorskip("mpire")
    return {"WorkerPool": mpire.WorkerPool, "pool": Of(mpire.WorkerPool)}


def of_pebble() -> dict[str, Any]:
    pebble = pytest.importorskip("pebble")
    names = {name: getattr(pebble, name) for name in pebble.__all__}
    own = {"pool": Of(pebble.ProcessPool), "future": Of(pebble.ProcessFuture)}
    return {**names, **own, "TimeoutError": TimeoutError}


THEIRS = {
    "multiprocessing": of_multiprocessing,
    "concurrent-futures": of_concurrent_futures,
    "joblib": of_joblib,
    "mpire": of_mpire,
    "pebble": of_pebble,
}

#: Methods of a pool that need no row, and why.
LEFT_OUT = {
    "multiprocessing": {"Process": "is no method of a pool", "starmap_async": "as map_async"},
    "mpire": {
        "join": "is stop_and_join",
        "pass_on_worker_id": "as pass_worker_id=",
        "set_keep_alive": "as keep_alive=",
        "set_order_tasks": "as order_tasks=",
    },
    "pebble": {"submit": "is for run_in_executor only, as its docstring says"},
}


def rows(library: str) -> list[list[str]]:
    """Return the cells of all rows of a page that have three."""
    text = (ROOT / f"docs/howto/from-{library}.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| (`.*?) \|(.*?)\|(.*)\|$", text, re.MULTILINE)
    assert len(table) > 10
    return [list(row) for row in table]


def check(cell: str, names: Names) -> None:
    for code in re.findall(r"`([^`]+)`", cell):
        try:
            names.meaning(ast.parse(code, mode="eval").body)
        except (AssertionError, SyntaxError, TypeError) as error:
            pytest.fail(f"`{code}`: {error}")


@pytest.mark.parametrize("library", THEIRS)
def test_what_a_table_says_of_mpkit_is_there(library: str) -> None:
    names = Names(dict(OURS))
    if library == "joblib":
        names.known |= {"parallel_config": None}  # which is given the name of our backend
    for _, ours, _ in rows(library):
        assert "`" in ours or ours.strip() == "–"
        check(ours, names)


@pytest.mark.parametrize("library", THEIRS)
def test_what_a_table_says_of_the_other_library_is_there(library: str) -> None:
    names = Names(THEIRS[library]())
    for theirs, _, _ in rows(library):
        check(theirs, names)
    pool = names.known.get("pool")
    if isinstance(pool, Of):
        methods = {name for name in dir(pool.kind) if not name.startswith("_")}
        assert methods - names.used - set(LEFT_OUT[library]) == set()


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ("pool.mapp(f, xs)", "has no mapp"),
        ("pool.map(f, xs, chunk_size=3)", "chunk_size"),
        ("mpkit.Pool(4)", "has no Pool"),
        ("mpkit.TaskPool(n_jobs=4)", "n_jobs"),
        ("pool.options(time_out=3).submit(f)", "time_out"),
        ("pool.options(timeout=3).close()", "has no close"),
        ("[pool.sumbit(f, x) for x in xs]", "has no sumbit"),
        ("Pool(4)", "what is Pool"),
    ],
)
def test_a_wrong_name_in_a_table_is_found(wrong: str, why: str) -> None:
    with pytest.raises(pytest.fail.Exception, match=why):
        check(f"`{wrong}`", Names(dict(OURS)))
