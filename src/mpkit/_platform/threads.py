"""How many threads the numerical libraries start in each worker of a pool.

Each starts as many as there are cores, if it is not told otherwise, and so does each worker:
eight workers on eight cores are 64 threads that wait for each other. They are told by variables
of the environment, which they read when they are loaded; so a worker has them before it imports
anything. What is loaded already when a worker is forked reads nothing any more. That is told by
`threadpoolctl`, if it is installed.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import warnings
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from mpkit._platform.cores import usable_cores

if TYPE_CHECKING:
    from multiprocessing.context import BaseContext

_OPENMP: Final = "OMP_NUM_THREADS"

#: Variables that libraries read, and whether they look at OpenMP's where their own is not set.
VARIABLES: Final = {
    _OPENMP: True,
    "OPENBLAS_NUM_THREADS": True,
    "MKL_NUM_THREADS": True,
    "BLIS_NUM_THREADS": True,
    "NUMEXPR_NUM_THREADS": True,
    "VECLIB_MAXIMUM_THREADS": False,
}

#: The variables of those libraries that can be told later, by what `threadpoolctl` calls them.
_KINDS: Final = {
    "openmp": _OPENMP,
    "openblas": "OPENBLAS_NUM_THREADS",
    "mkl": "MKL_NUM_THREADS",
    "blis": "BLIS_NUM_THREADS",
}

#: What loads such libraries. Without any of them there is nothing to be told.
_LOADERS: Final = ("numpy", "scipy", "torch", "mkl", "numexpr")


class Threads(NamedTuple):
    """What a worker is told."""

    #: How many threads a library may start in it.
    number: int
    #: Variables that it has in its environment, those of the user included.
    environment: dict[str, str]
    #: Which of them are not the user's.
    ours: tuple[str, ...]
    #: Whether the user has asked for so many: then they may become more than they were, too.
    asked: bool
    #: How the worker is started.
    method: str

    def arrive(self) -> None:
        """Have this process, a new worker, heed it, as far as it did not begin with it."""
        if self.method == "fork":
            for name, value in self.environment.items():
                os.environ[name] = value
        # A fork server may have loaded what its children have.
        if self.method != "spawn" and _needs_a_controller():
            try:
                self._tell_what_is_loaded()
            except Exception as error:  # noqa: BLE001  it is others' code, and no task needs it
                warnings.warn(
                    f"libraries that were loaded before this worker was forked may start more "
                    f"than {self.number} threads: {type(error).__name__}: {error}",
                    RuntimeWarning,
                    stacklevel=2,
                )

    def _tell_what_is_loaded(self) -> None:
        controller = _controller()
        if controller is None:
            return
        for library in controller.lib_controllers:
            if _KINDS.get(library.internal_api) not in self.ours:
                continue
            # They may have been told to start fewer: by a program before it made the pool.
            if self.asked or (library.num_threads or 0) > self.number:
                library.set_num_threads(self.number)


def share(workers: int) -> int:
    """Return how many threads each of so many workers may have, so that all fit the machine."""
    return max(1, usable_cores(few=workers) // workers)


def of_workers(workers: int, asked: int | None, context: BaseContext) -> Threads | None:
    """Return what each of so many workers is told; None if that is nothing.

    ``asked`` is for how many threads the user has asked: 0 leaves all as it is, and with None
    each worker has its share of the cores, unless a variable of the user's says otherwise.
    """
    if asked == 0:
        return None
    method = context.get_start_method()
    if method == "fork" and _needs_a_controller():
        with contextlib.suppress(ImportError):
            importlib.import_module("threadpoolctl")  # once here, and not in each worker
    theirs = {} if asked else {name: said for name in VARIABLES if (said := os.environ.get(name))}
    ours = tuple(
        name
        for name, looks_at_openmp in VARIABLES.items()
        if name not in theirs and not (looks_at_openmp and _OPENMP in theirs)
    )
    number = asked or share(workers)
    # Those of the user, too: a fork server has the environment of when it was started.
    environment = {**theirs, **dict.fromkeys(ours, str(number))}
    return Threads(number, environment, ours, bool(asked), method)


def _needs_a_controller() -> bool:
    """Tell whether there may be a library that does not look at the environment any more."""
    return not sys.modules.keys().isdisjoint(_LOADERS)


def _controller() -> Any:
    """Return what tells the libraries that are loaded; None if it is not there, or none are."""
    if not _needs_a_controller():
        return None
    try:
        threadpoolctl: Any = importlib.import_module("threadpoolctl")
    except ImportError:
        return None
    with warnings.catch_warnings():
        # It warns of libraries that may hang together, which is for the program to know.
        warnings.simplefilter("ignore")
        return threadpoolctl.ThreadpoolController()
