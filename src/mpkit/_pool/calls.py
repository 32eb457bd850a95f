"""The two accents in which a pool takes calls: multiprocessing's and concurrent.futures'."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, TypeVarTuple, overload

from mpkit._pool.caller import Caller, function, pulled
from mpkit._pool.executor import PoolExecutor
from mpkit._pool.results import Results
from mpkit._task.asked import Asked
from mpkit._task.task import Task

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Callable, Iterable, Mapping, Sequence

    from typing_extensions import Unpack

    from mpkit._pool.progress import Progress
    from mpkit._task.options import OptionNames

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R")
Ts = TypeVarTuple("Ts")


class Calls(Caller):
    """Gives calls to a pool, all with the same options. `TaskPool.options` returns one.

    A function and its arguments must be picklable, and are pickled before the method
    returns; with ``mpkit[cloudpickle]``, lambdas and closures are. Channel ends among the
    arguments move to the worker.
    """

    def options(self, **options: Unpack[OptionNames]) -> Calls:
        """Return a view of this pool whose calls have other options.

        Args:
            timeout: seconds that a task may run, from its start (a map without ``chunksize``
                is in tasks of some 10 ms, or of one item that takes longer). Then its worker is asked
                to end (SIGTERM), and killed if it has not in two seconds; the task fails
                with `TaskTimeout`, and all others go on.
            retries: how many times a task is run again after its worker died, its
                timeout, or one of ``retry_on``.
            retry_on: exception classes after which a task is run again.
            backoff: seconds from a failure to the next attempt. Each pause may be twice as
                long as the one before, up to a minute, and is shortened by a random half
                at most. 0 does not wait.
            priority: among waiting tasks, those of a higher one start first.
            name: what errors and pictures call the tasks, instead of their function's name.
            label: a text that goes with each of them ("page 3"): errors, log records and
                pictures have it behind the name.
            seed: a whole number from which each task, and each item of a map, has random
                numbers of its own: `rng`, `random`, and NumPy's ``numpy.random``, if it is
                imported. They are the same whatever the number of workers, the chunks, the
                order and the retries; only the calls have to be made in the same order,
                counted since this was given.
            propagate: context that goes with each call: a context variable (which is at the
                top level of a module), an object with ``capture()``, which is called here
                and returns what travels, and ``attach(captured)``, which returns a context
                manager that is entered around the call (or each item) in the worker; or
                several of them. The object is pickled, too.

        Raises:
            TypeError: there is no such option, or it is of the wrong type.
            ValueError: what was given makes no sense, or this pool cannot honour it.

        Example:
            >>> import mpkit
            >>> with mpkit.TaskPool(1) as pool:
            ...     pool.options(timeout=30, retries=2).submit(pow, 2, 3).result()
            8

        """
        # Where the seed is the same, no two calls are to have the same random numbers.
        here = None if "seed" in options else self._carriage
        numbers = None if here is None else here.calls
        return Calls(self._backend, self._options.changed(**options), self._owner or self, numbers)

    # in the accent of concurrent.futures

    @property
    def executor(self) -> PoolExecutor:
        """A `PoolExecutor` whose calls have these options. To shut it down leaves the pool open."""
        return PoolExecutor(self._submit, self._backend, self._carriage)

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Task[R]:
        """Have a worker call ``fn(*args, **kwargs)``; return its `Task` at once.

        Raises:
            NotPicklable: the function or an argument cannot travel.
            PoolClosed: the pool takes no more tasks.

        """
        if self._carriage is not None:
            fn = self._carriage.once(function(fn))
        return self._submit(fn, args, kwargs)

    # in the accent of multiprocessing

    @overload
    def apply(self, func: Callable[[], R]) -> R: ...
    @overload
    def apply(self, func: Callable[[*Ts], R], args: tuple[*Ts]) -> R: ...
    @overload
    def apply(self, func: Callable[..., R], args: list[Any]) -> R: ...
    @overload
    def apply(
        self, func: Callable[..., R], args: Sequence[Any] = (), *, kwds: Mapping[str, Any]
    ) -> R: ...
    @overload
    def apply(self, func: Callable[..., R], args: Sequence[Any], kwds: Mapping[str, Any]) -> R: ...
    def apply(
        self, func: Callable[..., Any], args: Sequence[Any] = (), kwds: Mapping[str, Any] = {}
    ) -> Any:
        """Have a worker call ``func(*args, **kwds)``; block until it has, and return its result."""
        # One that fails may be tried again by the supervisor, which then has to see its end.
        kind = Task if self._options.retries else Asked
        if self._carriage is not None:
            func = self._carriage.once(function(func))
        return _result(self._submit(func, args, kwds, kind=kind))

    @overload
    def apply_async(
        self,
        func: Callable[[], R],
        *,
        callback: Callable[[R], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> Task[R]: ...
    @overload
    def apply_async(
        self,
        func: Callable[[*Ts], R],
        args: tuple[*Ts],
        *,
        callback: Callable[[R], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> Task[R]: ...
    @overload
    def apply_async(
        self,
        func: Callable[..., R],
        args: list[Any],
        *,
        callback: Callable[[R], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> Task[R]: ...
    @overload
    def apply_async(
        self,
        func: Callable[..., R],
        args: Sequence[Any] = (),
        *,
        kwds: Mapping[str, Any],
        callback: Callable[[R], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> Task[R]: ...
    @overload
    def apply_async(
        self,
        func: Callable[..., R],
        args: Sequence[Any],
        kwds: Mapping[str, Any],
        callback: Callable[[R], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> Task[R]: ...
    def apply_async(
        self,
        func: Callable[..., Any],
        args: Sequence[Any] = (),
        kwds: Mapping[str, Any] = {},
        callback: Callable[[Any], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> Task[Any]:
        """Have a worker call ``func(*args, **kwds)``; return its `Task` at once.

        Args:
            func: the function.
            args: its positional arguments.
            kwds: its keyword arguments.
            callback: called with the result, in this process, before those who wait for
                the task are woken. It should be short: other results wait for it. One
                that raises is reported like an uncaught exception, and the pool goes on.
            error_callback: called likewise with the exception, if the call raised.

        Raises:
            NotPicklable: the function or an argument cannot travel.
            PoolClosed: the pool takes no more tasks.

        """
        if self._carriage is not None:
            func = self._carriage.once(function(func))
        return self._submit(func, args, kwds, callback, error_callback)

    def map(
        self,
        func: Callable[[T], R],
        iterable: Iterable[T],
        chunksize: int | None = None,
        *,
        progress: Progress = None,
    ) -> list[R]:
        """Return ``[func(item) for item in iterable]``, computed by the workers.

        Args:
            func: called with one item at a time.
            iterable: the items. All are read first; for an endless input use `imap`.
            chunksize: items per task. None makes four tasks for each worker, of which a worker
                does some 10 ms at a time: what is left of those with long items is shared out
                anew, the longest first.
            progress: True or a text shows a bar (with ``mpkit[progress]``, and if the
                output is a terminal); a callable is called with the items done and
                their total.

        Raises:
            Exception: what the first item that failed raised, once all have ended. The
                items behind it in its chunk may not have been tried.

        """
        return _result(self.map_async(func, iterable, chunksize, progress=progress))

    def map_async(
        self,
        func: Callable[[T], R],
        iterable: Iterable[T],
        chunksize: int | None = None,
        callback: Callable[[list[R]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
        *,
        progress: Progress = None,
    ) -> Task[list[R]]:
        """As `map`, but return a `Task` of the list at once."""
        return self._map(func, iterable, chunksize, callback, error_callback, progress, star=False)

    def starmap(
        self,
        func: Callable[[*Ts], R],
        iterable: Iterable[tuple[*Ts]],
        chunksize: int | None = None,
        *,
        progress: Progress = None,
    ) -> list[R]:
        """As `map`, for items that are tuples of arguments: ``func(*item)``."""
        return _result(self.starmap_async(func, iterable, chunksize, progress=progress))

    def starmap_async(
        self,
        func: Callable[[*Ts], R],
        iterable: Iterable[tuple[*Ts]],
        chunksize: int | None = None,
        callback: Callable[[list[R]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
        *,
        progress: Progress = None,
    ) -> Task[list[R]]:
        """As `starmap`, but return a `Task` of the list at once."""
        return self._map(func, iterable, chunksize, callback, error_callback, progress, star=True)

    def imap(
        self,
        func: Callable[[T], R],
        iterable: Iterable[T],
        chunksize: int = 1,
        *,
        progress: Progress = None,
    ) -> Results[R]:
        """Return an iterator over ``func(item)`` for each item, in order, as they come.

        The input is pulled lazily, no further ahead than some chunks for each worker: it
        may be slow, or endless. (With ``workers=0`` the thread that asks for a result pulls
        its input, and runs the call.) See `Results`.
        """
        return self._imap(func, iterable, chunksize, progress, ordered=True)

    def imap_unordered(
        self,
        func: Callable[[T], R],
        iterable: Iterable[T],
        chunksize: int = 1,
        *,
        progress: Progress = None,
    ) -> Results[R]:
        """As `imap`, with each result as soon as it is there, in no particular order."""
        return self._imap(func, iterable, chunksize, progress, ordered=False)

    def aimap(
        self,
        func: Callable[[T], R],
        iterable: Iterable[T] | AsyncIterable[T],
        chunksize: int = 1,
        *,
        progress: Progress = None,
    ) -> Results[R]:
        """As `imap`, to be called and consumed (``async for``) in asyncio.

        An asynchronous ``iterable`` is pulled in the running loop, just as lazily.

        Raises:
            RuntimeError: ``iterable`` is asynchronous, and no loop runs.

        Example:
            >>> import asyncio, mpkit
            >>> async def main() -> list[int]:
            ...     async with mpkit.TaskPool(2) as pool:
            ...         return [n async for n in pool.aimap(abs, [-1, -2])]
            >>> asyncio.run(main())
            [1, 2]

        """
        return self.imap(func, pulled(iterable), chunksize, progress=progress)

    def aimap_unordered(
        self,
        func: Callable[[T], R],
        iterable: Iterable[T] | AsyncIterable[T],
        chunksize: int = 1,
        *,
        progress: Progress = None,
    ) -> Results[R]:
        """As `aimap`, with each result as soon as it is there, in no particular order."""
        return self.imap_unordered(func, pulled(iterable), chunksize, progress=progress)


def _result(task: Task[R]) -> R:
    """Return the result of a task that nobody else knows of."""
    try:
        return task.result()
    except BaseException:
        if not task.done():  # Ctrl-C, say: nobody will ever ask for it again
            task.cancel()
        raise
