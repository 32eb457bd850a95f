"""What `import mpkit` gives, and what it costs."""

from __future__ import annotations

import ast
import inspect
import pathlib
import subprocess
import sys

import pytest

import mpkit
from mpkit._platform import descriptors

#: Optional or heavy: whoever needs one of them pays for it, and nobody else.
NOT_IMPORTED = [
    "asyncio",
    "cloudpickle",
    "concurrent.futures.process",
    "ctypes",
    "distributed",
    "joblib",
    "msgspec",
    "numpy",
    "rich",
    "tqdm",
    "multiprocessing.managers",
    "multiprocessing.pool",
]


def test_all_is_what_is_public() -> None:
    names = {name for name in dir(mpkit) if not name.startswith("_")}
    # A module that not all need is there once somebody has imported it.
    assert names - {"joblib", "dask", "protocols"} == set(mpkit.__all__)
    assert len(mpkit.__all__) == len(set(mpkit.__all__))


def test_a_name_is_imported_from_where_type_checkers_are_told() -> None:
    tree = ast.parse(pathlib.Path(mpkit.__file__).read_text(encoding="utf-8"))
    told = {
        alias.name: node.module
        for branch in tree.body
        if isinstance(branch, ast.If)
        for node in branch.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    homes = {name: f"mpkit.{home}" for name, home in vars(mpkit)["_HOMES"].items()}
    assert told == homes


def test_what_is_not_there_is_an_attribute_error_as_of_any_module() -> None:
    with pytest.raises(AttributeError, match="module 'mpkit' has no attribute 'Pool'"):
        getattr(mpkit, "Pool")  # noqa: B009  type checkers know that it is not there
    with pytest.raises(ImportError, match="cannot import name 'Pool' from 'mpkit'"):
        exec("from mpkit import Pool")


@pytest.mark.parametrize("name", mpkit.__all__)
def test_a_public_name_has_a_docstring_of_its_own(name: str) -> None:
    doc = vars(getattr(mpkit, name)).get("__doc__") or inspect.getdoc(getattr(mpkit, name))
    assert doc
    assert doc.splitlines()[0].endswith((".", ".)"))


METHODS = [
    (name, member)
    for name in mpkit.__all__
    if inspect.isclass(getattr(mpkit, name))
    for member, value in inspect.getmembers_static(getattr(mpkit, name))
    if not member.startswith("_")
    and (callable(value) or isinstance(value, (property, classmethod, staticmethod)))
]


@pytest.mark.parametrize(("name", "member"), METHODS)
def test_a_public_method_has_a_docstring(name: str, member: str) -> None:
    assert inspect.getdoc(getattr(getattr(mpkit, name), member))


def modules_after(code: str) -> set[str]:
    """Return what a fresh interpreter has imported once it ran ``code``."""
    program = f"import sys; before = set(sys.modules)\n{code}\nprint(*(set(sys.modules) - before))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


#: Imports mpkit and all that it has.
EVERYTHING = "from mpkit import *"


def test_importing_mpkit_imports_nothing_optional_or_heavy() -> None:
    assert not modules_after(EVERYTHING) & set(NOT_IMPORTED)


def test_importing_mpkit_imports_nothing_of_it_that_was_not_asked_for() -> None:
    ours = {name for name in modules_after("import mpkit") if name.startswith("mpkit")}
    assert ours == {"mpkit", "mpkit._errors"}
    assert "mpkit._pool.pool" in modules_after(EVERYTHING)


#: What a worker would take half as long again to begin with. (It has `traceback`, which imports the
#: other two, when a task raises.)
NOT_IN_WORKERS = {
    "dataclasses",
    "inspect",
    "logging",
    "mpkit._engine",
    "mpkit._platform.threads",
    "mpkit._pool",
    "mpkit._task",
    "mpkit._watch",
    "mpkit._worker.packed",
    "resource",
    "textwrap",
    "tokenize",
    "traceback",
}

#: Classes of ours that are tuples: each NamedTuple takes 0.1 ms to define.
NAMED_TUPLES = """[
    thing.__qualname__
    for name, module in list(__import__("sys").modules.items()) if name.startswith("mpkit")
    for thing in vars(module).values()
    if type(thing) is type and issubclass(thing, tuple) and thing.__module__ == name
]"""


def test_a_worker_that_is_spawned_imports_only_what_it_needs() -> None:
    program = f"""
import mpkit
from mpkit._platform import descriptors
with mpkit.TaskPool(1, context="spawn") as pool:
    for looked_for in "set(__import__('sys').modules)", {NAMED_TUPLES!r}:
        print(*pool.map(eval, [looked_for])[0])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    modules, tuples = done.stdout.splitlines()
    assert "mpkit._worker.worker" in modules.split()
    assert not NOT_IN_WORKERS & set(modules.split())
    assert not tuples


@pytest.mark.skipif(not descriptors.HAS_PACKETS, reason="here it needs links over streams")
def test_a_pool_imports_nothing_that_only_some_need() -> None:
    rare = {"mpkit._engine.audience", "mpkit._streamlink", "mpkit._worker.aside"}
    assert not rare & modules_after("import mpkit\nwith mpkit.TaskPool(1) as pool: pool.apply(int)")


def test_importing_mpkit_starts_and_registers_nothing() -> None:
    code = """
import atexit, os, signal, threading, multiprocessing.util as util
registered = []
os.register_at_fork = lambda **kinds: registered.append(kinds)
atexit.register = lambda *args: registered.append(args)
handlers = signal.getsignal(signal.SIGCHLD), signal.getsignal(signal.SIGINT)
fds, finalizers = os.listdir("/dev/fd"), set(util._finalizer_registry)
from mpkit import *
assert threading.active_count() == 1
assert os.listdir("/dev/fd") == fds
assert set(util._finalizer_registry) == finalizers
assert handlers == (signal.getsignal(signal.SIGCHLD), signal.getsignal(signal.SIGINT))
ours = [what for what in registered if "mpkit" in repr(what)]
assert not ours, ours
"""
    modules_after(code)


def test_the_version_is_one_that_packaging_understands() -> None:
    assert [part.isdecimal() for part in mpkit.__version__.split(".")] == [True] * 3
