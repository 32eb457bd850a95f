"""What it takes to begin: to import a library, to start a pool and to stop it."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections import deque

from benchmarks.libraries import LACKS, LIBRARIES
from benchmarks.pools import WORKERS, seconds
from benchmarks.registry import Case, case
from benchmarks.work import noop

LIVES = {
    method: case(f"start, 2 tasks, stop: {method}", "ms", count=10, quick=2)
    for method in ("fork", "forkserver", "spawn")
}
FLOOR = case("start: fork, beside two bare forks", "ms", count=10, quick=2)
IMPORT = case("import", "ms", count=10, quick=3)
IMPORT_POOL = case("import of the pool", "ms", count=10, quick=3)

#: How each is imported; the first peer is the least that any of them needs.
IMPORTS = {
    "mpkit": "import mpkit",
    "the two of the standard library": "import multiprocessing, concurrent.futures",
    "loky": "import loky",
    "mpire": "import mpire",
    "pebble": "import pebble",
    "joblib": "import joblib",
}

#: And its pool, as some of them import that only when it is asked for.
IMPORTS_OF_POOLS = {
    "mpkit": "from mpkit import TaskPool",
    "multiprocessing": "from multiprocessing.pool import Pool",
    "concurrent.futures": "from concurrent.futures import ProcessPoolExecutor",
    "loky": "from loky import ProcessPoolExecutor",
    "mpire": "from mpire import WorkerPool",
    "pebble": "from pebble import ProcessPool",
    "joblib": "from joblib import Parallel",
}

#: What a program has at its top that has a pool of each library.
PROGRAMS = {library: library for library in LIBRARIES} | {
    "multiprocessing": "multiprocessing.pool",
    "concurrent.futures": "concurrent.futures.process",
}


def _lives(library: str, method: str, count: int) -> float:
    def once() -> None:
        with LIBRARIES[library](WORKERS, method) as calls:
            deque(calls.map(noop, [1, 2], 1), maxlen=0)

    once()  # imports the library, and starts the fork server
    return seconds(lambda: [once() for _ in range(count)])


def _bare_forks(count: int) -> float:
    """Processes that are born and end: what a worker does in between can only add to it."""

    def once() -> None:
        born = []
        for _ in range(WORKERS):
            pid = os.fork()
            if pid == 0:
                os._exit(0)
            born.append(pid)
        for pid in born:
            os.waitpid(pid, 0)

    return seconds(lambda: [once() for _ in range(count)])


def _imported(statement: str, count: int) -> float:
    """Return the median of so many fresh interpreters, for each of them."""
    program = f"import time; t = time.perf_counter(); {statement}; print(time.perf_counter() - t)"
    command = [sys.executable, "-c", program]
    subprocess.run(command, check=True, capture_output=True)  # fills the system's cache of files
    taken = [
        float(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(count)
    ]
    return statistics.median(taken) * count


for _method, _row in LIVES.items():
    _row.imports = PROGRAMS
    for _library in LIBRARIES:
        if _library == "joblib":
            _row.cannot(_library, LACKS["method"])
        else:
            _row.run(_library)(
                lambda count, library=_library, method=_method: _lives(library, method, count)
            )
FLOOR.imports = PROGRAMS | {"os.fork": PROGRAMS["multiprocessing"]}
FLOOR.run("os.fork")(_bare_forks)
for _library in ("mpkit", "multiprocessing"):
    FLOOR.run(_library)(LIVES["fork"].runs[_library])
for _row, _statements in (IMPORT, IMPORTS), (IMPORT_POOL, IMPORTS_OF_POOLS):
    for _library, _statement in _statements.items():
        _row.run(_library)(lambda count, statement=_statement: _imported(statement, count))

CASES: list[Case] = [*LIVES.values(), FLOOR, IMPORT, IMPORT_POOL]
