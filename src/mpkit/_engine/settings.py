"""What a pool is made with: its settings, checked where they are given."""

from __future__ import annotations

import multiprocessing
import warnings
from concurrent.futures import Executor
from multiprocessing.context import BaseContext
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from mpkit import _reader
from mpkit._call import Call
from mpkit._platform import memory, threads
from mpkit._platform.cores import default_workers
from mpkit._task.options import OptionNames, Options, check_known, whole_number
from mpkit._worker import packed
from mpkit._worker import shared as shared_
from mpkit._worker.setup import Setup

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from typing_extensions import Unpack


class PoolSettings(OptionNames, total=False):
    """The keywords of `TaskPool` that are no parameters of `multiprocessing.Pool` but two."""

    memory_limit: int | None
    memory_hard_limit: int | None
    finalizer: Callable[[], object] | None
    shared: object
    log: bool | int | str | None
    capture: bool
    on: Executor | None
    options: Options | None
    processes: int | None
    maxtasksperchild: int | None
    threads_per_worker: int | None


#: All that `TaskPool` takes.
_KNOWN = {
    *("workers", "initializer", "initargs", "tasks_per_worker", "context"),
    *PoolSettings.__annotations__,
}


class Settings(NamedTuple):
    """How a pool is made. `settled` makes them, and checks what it is given.

    ``given`` has by name what was given and makes sense only with workers of the pool's own;
    ``workers`` is how many of these, if it is to have any, and ``options`` are those of all calls.
    """

    options: Options
    on: Executor | None
    workers: int
    context: BaseContext
    setup: Setup
    tasks_per_worker: int | None
    memory_limit: int | None
    memory_hard_limit: int | None
    #: From which level on log records are sent to this process; None if they are not.
    log: int | None
    capture: bool
    given: Mapping[str, object]

    @property
    def has_workers(self) -> bool:
        """Whether the pool has processes of its own."""
        return self.on is None and self.workers > 0

    def check(self) -> None:
        """Raise ValueError for what was given and means nothing to this kind of pool.

        With ``workers=0`` nothing is refused: who debugs leaves the rest as it is.
        """
        if self.on is not None:
            for name, value in self.given.items():
                if value is not None:
                    raise ValueError(
                        f"{name}= makes no sense together with on=, whose workers are not the "
                        "pool's: give it to the executor"
                    )
        elif not self.has_workers and self.memory_hard_limit is not None:
            warnings.warn(
                "memory_hard_limit has no effect with workers=0: tasks run in this process",
                RuntimeWarning,
                stacklevel=4,
            )


def settled(
    workers: int | None,
    initializer: Callable[..., object] | None,
    initargs: Iterable[Any],
    tasks_per_worker: int | None,
    context: BaseContext | str | None,
    **settings: Unpack[PoolSettings],
) -> Settings:
    """Return what these mean; raises TypeError and ValueError for what makes no sense."""
    check_known(settings, _KNOWN)
    on = settings.pop("on", None)
    if on is not None and not isinstance(on, Executor):
        raise TypeError(f"on is a concurrent.futures.Executor, not {on!r}")
    options = settings.pop("options", None)
    workers = _one_of("workers", workers, "processes", settings.pop("processes", None))
    workers = _count("workers", workers, 0)
    tasks_per_worker = _one_of(
        "tasks_per_worker",
        tasks_per_worker,
        "maxtasksperchild",
        settings.pop("maxtasksperchild", None),
    )
    tasks_per_worker = _count("tasks_per_worker", tasks_per_worker, 1)
    memory_limit = _count("memory_limit", settings.pop("memory_limit", None), 1)
    hard_limit = _count("memory_hard_limit", settings.pop("memory_hard_limit", None), 1)
    if hard_limit is not None and not memory.HAS_PROC:
        raise ValueError("memory_hard_limit needs /proc, which this system does not have")
    threads_per_worker = _count("threads_per_worker", settings.pop("threads_per_worker", None), 0)
    init = _call("initializer", initializer, initargs)
    final = _call("finalizer", settings.pop("finalizer", None), ())
    shared = settings.pop("shared", None)
    if options is not None and not isinstance(options, Options):
        raise TypeError(f"options are mpkit.Options(...), not {options!r}")
    log, capture = _level(settings.pop("log", None)), settings.pop("capture", False)
    if not isinstance(capture, bool):
        raise TypeError(f"capture is True or False, not {capture!r}")
    # What is left are options.
    asked = (options or Options()).changed(**cast("OptionNames", settings))
    count = default_workers() if workers is None and on is None else workers or 0
    made_in = _context(context)
    found = Settings(
        options=asked,
        on=on,
        workers=count,
        context=made_in,
        setup=Setup(
            init,
            final,
            report_memory=memory_limit is not None or hard_limit is not None,
            threads=threads.of_workers(count, threads_per_worker, made_in) if count else None,
        ),
        tasks_per_worker=tasks_per_worker,
        memory_limit=memory_limit,
        memory_hard_limit=hard_limit,
        log=log,
        capture=capture,
        given={
            "initializer": init,
            "finalizer": final,
            "shared": shared,
            "workers": workers,
            "tasks_per_worker": tasks_per_worker,
            "memory_limit": memory_limit,
            "memory_hard_limit": hard_limit,
            "context": context,
            "threads_per_worker": threads_per_worker,
            "log": log,
            "capture": capture or None,
        },
    )
    found.check()
    if shared is not None:  # last, as this takes memory
        found.setup.shared = _shared(shared, found)
    return found


def _call(name: str, fn: Callable[..., object] | None, args: Iterable[Any]) -> Call | None:
    if fn is None:
        return None
    if not callable(fn):
        raise TypeError(f"{name} is a function, not {fn!r}")
    return Call(fn, tuple(args), {})


def _shared(thing: object, settings: Settings) -> shared_.Shared:
    if not settings.has_workers:
        return shared_.Here(thing)
    return packed.pack(thing, _reader.child(settings.context.get_start_method()))


def _level(log: bool | int | str | None) -> int | None:
    """Return the level that ``log`` stands for: 0 is all that the loggers let through."""
    if log is None or log is False:
        return None
    if log is True:
        return 0
    if not isinstance(log, str):
        return whole_number("log", log, 0)
    import logging  # noqa: PLC0415  slow to import, and nobody else needs it

    levels = logging.getLevelNamesMapping()
    if log.upper() not in levels:
        raise ValueError(f"log is True or a level of logging, and there is none called {log!r}")
    return levels[log.upper()]


def _context(context: BaseContext | str | None) -> BaseContext:
    if isinstance(context, BaseContext):
        return context
    return multiprocessing.get_context(context)


def _one_of(name: str, value: int | None, other: str, synonym: int | None) -> int | None:
    if value is not None and synonym is not None:
        raise TypeError(f"{name} and {other} are the same thing: give one of them")
    return synonym if value is None else value


def _count(name: str, value: int | None, least: int) -> int | None:
    return None if value is None else whole_number(name, value, least)
