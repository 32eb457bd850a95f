"""Programs whose functions and classes are in ``__main__``, however that came to be.

Each is text, since it is to be a script, a module, what stands behind ``-c``, standard input,
or the cells of a notebook: those are what is between the lines ``# cell``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable

_DEFINES = """
import functools
import json
import multiprocessing
import os
import sys

import mpkit


class Point:
    made = 0

    def __init__(self, x):
        self.x = x

    def __call__(self, y):
        return Point(self.x + y)

    def plus(self, y):
        return self.x + y

    @classmethod
    def at(cls, x):
        return cls(x)


class Sour(Exception):
    pass


def square(n):
    return n * n


def power(n, exponent):
    return n**exponent


def move(point):
    assert isinstance(point, Point)  # the same class for the function as for its arguments
    return Point(square(point.x))


def spoil(point):
    raise Sour(move(point))


@functools.cache
def fib(n):
    return n if n < 2 else fib(n - 1) + fib(n - 2)


def prepare(point):
    mpkit.worker_state()["point"] = point


def prepared(_):
    point = mpkit.worker_state()["point"]
    return isinstance(point, Point), point.x, mpkit.shared()["point"].x


def echo(end):
    for point in end:
        end.send(Point(-point.x) if isinstance(point, Point) else point)
"""

#: All that is done with them where cloudpickle is installed, or new processes import the file.
EVERYTHING = f"""
{_DEFINES}
# cell
def point(thing):
    assert type(thing) is Point, type(thing)
    return thing.x


def spoiled(call, *args):
    try:
        call(*args)
    except Sour as error:
        return point(error.args[0])


if __name__ == "__main__":
    multiprocessing.set_start_method(os.environ["METHOD"])
    pool = mpkit.TaskPool(2, prepare, (Point(7),), shared={{"point": Point(8)}})

# cell


def late(n):
    return square(n) + 1


class Late(Point):
    pass


def late_class(thing):
    assert isinstance(thing, Late) and isinstance(thing, Point)
    return Late(thing.x + 1)


if __name__ == "__main__":
    def guarded(thing):
        assert isinstance(thing, Point)
        return Point(square(thing.x))

    three = 3
    with pool:
        said = [
            pool.apply(square, (3,)),
            pool.apply_async(square, (3,)).get(),
            pool.submit(power, 3, exponent=2).result(),
            pool.options(name="named").submit(square, 3).result(),
            pool.map(square, range(4)),
            pool.map(square, range(100), chunksize=30) == [n * n for n in range(100)],
            pool.map(square, range(1000)) == [n * n for n in range(1000)],
            pool.map_async(square, range(4)).get(),
            pool.starmap(power, [(2, 3), (3, 2)]),
            list(pool.imap(square, range(4))),
            sorted(pool.imap_unordered(square, range(4), chunksize=2)),
            list(pool.executor.map(square, range(4))),
            pool.map(functools.partial(power, exponent=3), range(3)),
            [point(moved) for moved in pool.map(Point(1), range(3))],
            pool.map(Point(1).plus, range(3)),
            [point(made) for made in pool.map(Point.at, range(3))],
            [point(made) for made in pool.map(Point, range(3))],
            [point(moved) for moved in pool.map(move, map(Point, range(3)))],
            [point(moved) for moved in pool.imap(move, map(Point, range(3)))],
            pool.map(fib, range(5)),
            pool.apply(prepared, (0,)),
            spoiled(pool.apply, spoil, (Point(3),)),
            spoiled(pool.map, spoil, [Point(3)]),
        ]
        here, there = mpkit.channel()
        with mpkit.start(echo, there) as echoing, here:
            said.append(point(here.request(Point(5))))
            said.append(here.request("text"))
        said.append(point(mpkit.start(move, Point(3)).result()))
        said.append(spoiled(mpkit.start(spoil, Point(3)).result))
        more = [] if os.environ["CLOUDPICKLE"] == "no" else [
            pool.map(lambda n: n + three, range(3)),
            point(pool.apply(lambda p: Point(p.x), (Point(2),))),
            pool.map(late, range(3)),
            [type(p) is Late and p.x for p in pool.map(late_class, map(Late, range(2)))],
            point(pool.apply(guarded, (Point(3),))),
            pool.apply(lambda: functools.cache(lambda n: n + 1))(1),
            mpkit.start(lambda: three).result(),
        ]
    print(json.dumps([said, more]))
"""

EXPECTED = [
    9, 9, 9, 9,
    [0, 1, 4, 9], True, True, [0, 1, 4, 9], [8, 9],
    [0, 1, 4, 9], [0, 1, 4, 9], [0, 1, 4, 9],
    [0, 1, 8], [1, 2, 3], [1, 2, 3], [0, 1, 2], [0, 1, 2], [0, 1, 4], [0, 1, 4], [0, 1, 1, 2, 3],
    [True, 7, 8], 9, 9, -5, "text", 9, 9,
]  # fmt: skip
EXPECTED_MORE = [[3, 4, 5], 2, [1, 2, 5], [1, 2], 9, 2, 3]

#: What cannot travel: each call that raises NotPicklable, and what that says.
REFUSED = f"""
{_DEFINES}
# cell
said = []


def refused(call, *args):
    try:
        call(*args)
    except mpkit.NotPicklable as error:
        said.append(str(error))
    else:
        said.append("it went")


def doubled(n):
    return 2 * n


if __name__ == "__main__":
    multiprocessing.set_start_method(os.environ["METHOD"])
    try:
        pool = mpkit.TaskPool(1, prepare, (Point(7),))
    except mpkit.NotPicklable as error:
        said.append(str(error))
        pool = mpkit.TaskPool(1)
    else:
        said.append("it went")

# cell
if __name__ == "__main__":
    def late(n):
        return n

    class Late:
        def __init__(self, x):
            self.x = x

    with pool:
        refused(mpkit.start, doubled, 1)
        refused(pool.apply, doubled, (1,))
        refused(pool.map, doubled, [1])
        refused(lambda: list(pool.imap(doubled, [1])))
        refused(pool.submit, max, [Point(1)])
        refused(pool.submit, Point(1).plus, 1)
        refused(pool.submit, late, 1)
        refused(pool.submit, len, {{"key": [Late(1)]}})
        refused(pool.submit, lambda: 1)
        # And goes on.
        assert pool.apply(pow, (2, 3)) == 8
    print(json.dumps(said))
"""


def run(
    program: str, how: str, folder: Path, method: str, *, cloudpickle: bool
) -> subprocess.CompletedProcess[str]:
    """Run a program, which came to be ``how`` says, to its end."""
    return _WAYS[how](program, folder, environment(folder, method, cloudpickle=cloudpickle))


def environment(folder: Path, method: str, *, cloudpickle: bool) -> dict[str, str]:
    """Return the environment of a program, in which cloudpickle may not be imported."""
    path = sys.path
    if not cloudpickle:
        blocked = folder / "blocked"
        blocked.mkdir()
        (blocked / "cloudpickle.py").write_text("raise ImportError('it is not installed')\n")
        path = [str(blocked), *path]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path),
        "METHOD": method,
        "CLOUDPICKLE": "yes" if cloudpickle else "no",
    }


def ran(
    folder: Path, env: dict[str, str], *args: str, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments to its end."""
    return subprocess.run(
        [sys.executable, "-Wignore::DeprecationWarning", *args],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE,
        cwd=folder,
        env=env,
    )


def _script(text: str, folder: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    (folder / "program.py").write_text(text)
    return ran(folder, env, "program.py")


def _module(text: str, folder: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    (folder / "program.py").write_text(text)
    return ran(folder, env, "-m", "program")


def _package(text: str, folder: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    (folder / "package").mkdir()
    (folder / "package" / "__main__.py").write_text(text)
    return ran(folder, env, "-m", "package")


def _command(text: str, folder: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return ran(folder, env, "-c", text)


def _stdin(text: str, folder: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return ran(folder, env, "-", stdin=text)


_RUN_NOTEBOOK = """
import sys
import nbclient, nbformat
book = nbformat.v4.new_notebook()
book.cells = [nbformat.v4.new_code_cell(cell) for cell in sys.stdin.read().split("# cell\\n")]
nbclient.NotebookClient(book, timeout=float(sys.argv[1]), kernel_name="python3").execute()
for output in [output for cell in book.cells for output in cell.outputs]:
    print(output.text, end="", file=getattr(sys, output.name))
"""


def _notebook(text: str, folder: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    env |= {"IPYTHONDIR": str(folder), "JUPYTER_RUNTIME_DIR": str(folder)}
    return ran(folder, env, "-c", _RUN_NOTEBOOK, str(2 * PATIENCE), stdin=text)


_WAYS: dict[str, Callable[..., subprocess.CompletedProcess[str]]] = {
    "script": _script,
    "-m": _module,
    "-m package": _package,
    "-c": _command,
    "stdin": _stdin,
    "notebook": _notebook,
}
WAYS = list(_WAYS)
#: Those whose file new processes import.
IMPORTED = ("script", "-m")
