"""Survey a tree of Python files: the largest, the longest, the most complex, the broken.

    python examples/survey.py [FOLDER] [--start-method spawn] [--enough FILES]
    python examples/survey.py [FOLDER] --on ADDRESS

Without a folder it surveys the standard library of the Python that runs it:

* a `TaskPool` measures the files, each one a task: one that fails costs only itself;
* a `limit`, inline in the task, lets only so many processes read at once;
* a collector, started with `start`, owns the totals, and gets each file's measures over
  a typed `Channel`;
* a `Signal` tells everybody to stop early: Ctrl-C sets it, and so does the collector
  once it has enough. What is there by then is reported.

With ``--on`` all of them are on the Dask cluster whose scheduler is at that address: the tasks and
the collector are on its workers, which see the same folder, and the limit holds on all machines.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import functools
import heapq
import importlib
import multiprocessing
import operator
import os
import signal
import sys
import sysconfig
import textwrap
import threading
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mpkit

if TYPE_CHECKING:
    from collections.abc import Iterator

READERS = 4  # processes that read files at the same time
SHOWN = 8  # rows of a table
LOOPS = (ast.For, ast.AsyncFor, ast.While, ast.comprehension)
DECISIONS = (*LOOPS, ast.If, ast.IfExp, ast.ExceptHandler, ast.Assert, ast.match_case)
by_length = operator.attrgetter("lines", "where")
by_complexity = operator.attrgetter("complexity", "where")


@dataclass(frozen=True)
class Function:
    lines: int
    complexity: int
    where: str


@dataclass(frozen=True)
class File:
    path: str
    lines: int = 0
    functions: int = 0
    longest: tuple[Function, ...] = ()
    hardest: tuple[Function, ...] = ()
    problem: str = ""


@dataclass
class Totals:
    files: int = 0
    lines: int = 0
    functions: int = 0
    largest: list[tuple[int, str]] = field(default_factory=list)
    longest: list[Function] = field(default_factory=list)
    hardest: list[Function] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)

    def add(self, file: File) -> None:
        self.files += 1
        if file.problem:
            self.problems[file.path] = file.problem
            return
        self.lines += file.lines
        self.functions += file.functions
        self.largest = heapq.nlargest(SHOWN, [*self.largest, (file.lines, file.path)])
        self.longest = heapq.nlargest(SHOWN, [*self.longest, *file.longest], by_length)
        self.hardest = heapq.nlargest(SHOWN, [*self.hardest, *file.hardest], by_complexity)


def measure(path: str, root: Path, stop: mpkit.Signal) -> File | None:
    """Measure one file; None once nobody wants to know. This is the pool's task."""
    if stop.is_set():
        return None
    try:
        with mpkit.limit(READERS):  # in all processes together; released if we are killed
            source = (root / path).read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what the compiler thinks of the code
            tree = ast.parse(source, path)
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return File(path, problem=f"{type(error).__name__}: {error}")
    found = functions(tree, path)
    longest = heapq.nlargest(SHOWN, found, by_length)
    hardest = heapq.nlargest(SHOWN, found, by_complexity)
    return File(path, len(source.splitlines()), len(found), tuple(longest), tuple(hardest))


def functions(tree: ast.Module, path: str) -> list[Function]:
    """Measure every function: its lines, and its cyclomatic complexity (decisions + 1)."""
    found: list[tuple[ast.FunctionDef | ast.AsyncFunctionDef, list[int]]] = []
    todo: list[tuple[ast.AST, list[int]]] = [(tree, [1])]
    while todo:
        node, complexity = todo.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            complexity = [1]  # a function inside a function counts for itself
            found.append((node, complexity))
        elif isinstance(node, DECISIONS):
            complexity[0] += 1
        elif isinstance(node, ast.BoolOp):
            complexity[0] += len(node.values) - 1
        todo += [(child, complexity) for child in ast.iter_child_nodes(node)]
    return [
        Function(last - node.lineno + 1, complexity[0], f"{path}:{node.lineno} {node.name}")
        for node, complexity in found
        if (last := node.end_lineno)  # as it always has
    ]


def collect(parent: mpkit.Channel[Totals, File], stop: mpkit.Signal, enough: int | None) -> None:
    """Add up what comes, and send the totals back. This is the collector's process."""
    totals = Totals()
    for file in parent:  # until the parent sends no more; PeerDied, had it been killed
        totals.add(file)
        if totals.files == enough:
            stop.set()
    parent.send(totals)


def survey(root: Path, files: list[str], stop: mpkit.Signal, enough: int | None) -> Totals:
    here, there = mpkit.channel(send=File, recv=Totals)
    task = functools.partial(measure, root=root, stop=stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who is started now inherits that
    with mpkit.start(collect, there, stop, enough), mpkit.TaskPool(timeout=60) as pool:
        # By a thread: on a cluster it waits for an answer, which a handler had better not.
        signal.signal(signal.SIGINT, lambda *_: threading.Thread(target=stop.set).start())
        results = pool.imap(task, files, progress="surveying")
        for path in files:
            try:
                file = next(results)
            except (mpkit.WorkerDied, mpkit.TaskTimeout) as error:  # this file's loss alone
                file = File(path, problem=f"{type(error).__name__}: {error}")
            if file is None or stop.is_set():
                break
            here.send(file)
        results.close()  # when stopped early: cancels what has not begun
        here.close_send()  # no more from here; the collector answers
        return here.recv()


def survey_serially(root: Path, files: list[str], stop: mpkit.Signal) -> Totals | None:
    """The same without any pool; None if it was stopped."""
    totals = Totals()
    for path in files:
        file = measure(path, root, stop)
        if file is None:
            return None
        totals.add(file)
    return totals


def report(totals: Totals, of: int) -> None:
    counts = f"{totals.lines:,} lines, {totals.functions:,} functions"
    print(f"\n{totals.files:,} of {of:,} files, {counts}")
    table("largest files", "lines", [(lines, path) for lines, path in totals.largest])
    table("longest functions", "lines", [(f.lines, f.where) for f in totals.longest])
    table("most complex functions", "score", [(f.complexity, f.where) for f in totals.hardest])
    print(f"\n{len(totals.problems)} files cannot be read or parsed")
    for path, problem in sorted(totals.problems.items()):
        print(f"         {path}: {textwrap.shorten(problem, 90)}")


def table(title: str, unit: str, rows: list[tuple[int, str]]) -> None:
    print(f"\n{unit:>7}  {title}")
    for count, what in rows:
        print(f"{count:7,}  {what}")


def python_files(root: Path) -> list[str]:
    found = (path.relative_to(root) for path in root.rglob("*.py") if not path.is_dir())
    return sorted(str(path) for path in found if "site-packages" not in path.parts)


@contextlib.contextmanager
def on(address: str | None) -> Iterator[None]:
    """Have `mpkit` mean a cluster, as if it said ``import mpkit.dask as mpkit`` above."""
    if address is None:
        yield
        return
    distributed: Any = importlib.import_module("distributed")
    globals()["mpkit"] = importlib.import_module("mpkit.dask")
    with distributed.Client(address):
        yield


def main() -> int:
    parser = argparse.ArgumentParser(description="Survey a tree of Python files.")
    parser.add_argument("folder", nargs="?", type=Path, default=sysconfig.get_path("stdlib"))
    parser.add_argument("--start-method", choices=multiprocessing.get_all_start_methods())
    parser.add_argument("--enough", type=int, metavar="FILES", help="stop after so many")
    parser.add_argument("--on", metavar="ADDRESS", help="on the Dask cluster of this scheduler")
    args = parser.parse_args()
    multiprocessing.set_start_method(args.start_method)  # None: what this Python prefers
    with on(args.on):
        return run(args)


def run(args: argparse.Namespace) -> int:
    root = Path(args.folder).resolve()
    files = python_files(root)
    stop = mpkit.Signal()
    print(f"surveying {len(files):,} files below {root} ...", flush=True)
    began = time.perf_counter()
    totals = survey(root, files, stop, args.enough)
    took = time.perf_counter() - began
    report(totals, len(files))
    if stop.is_set():
        print(f"\nstopped early, after {took:.1f} s; not checked")
        return 0
    print(f"\nThis took {took:.1f} s. Now serially, to check it ...", flush=True)
    began = time.perf_counter()
    serially = survey_serially(root, files, stop)
    took_serially = time.perf_counter() - began
    if serially is None:
        print("stopped before it was checked")
        return 0
    outcome = "the same result" if serially == totals else "ANOTHER RESULT"
    print(f"Serially it takes {took_serially:.1f} s, with {outcome}:")
    where = f"on the cluster at {args.on}" if args.on else f"on {os.cpu_count()} cores"
    print(f"the pool is {took_serially / took:.2f} times as fast, {where}.")
    return int(serially != totals)


if __name__ == "__main__":
    sys.exit(main())
