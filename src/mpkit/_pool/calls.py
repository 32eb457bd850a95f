"""The two accents in which a pool takes calls: multiprocessing's and concurrent.futures'."""

from __future__ import annotations

import itertools
import math
from collections.abc import AsyncIterable, Sized
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, TypeVarTuple, overload

from mpkit import _outcome
from mpkit._call import Call
from mpkit._pool import progress as progress_
from mpkit._pool.executor import PoolExecutor
from mpkit._pool.gather import Gather
from mpkit._pool.inline import Inline
from mpkit._pool.lazy import LazyResults, run_each_here
from mpkit._pool.lookahead import AHEAD
from mpkit._pool.results import Results
from mpkit._task import carriage
from mpkit._task.asked import Asked
from mpkit._task.options import whole_number
from mpkit._task.task import Task
from mpkit._worker import chunks, packing
from mpkit._worker.slices import MANY, SLICE_SECONDS, Bounds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from typing_extensions import Unpack

    from mpkit._engine.backend import Backend
    from mpkit._pool.gather import Slice
    from mpkit._pool.progress import Progress
    from mpkit._task.options import OptionNames, Options

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R")
Ts = TypeVarTuple("Ts")


class Calls:
    """Gives calls to a pool, all with the same options. `TaskPool.options` returns one.

    A function and its arguments must be picklable, and are pickled before the method
    returns; with ``mpkit[cloudpickle]``, lambdas and closures are. Channel ends among the
    arguments move to the worker.
    """

    def __init__(
        self,
        backend: Backend,
        options: Options,
        owner: object,
        numbers: itertools.count[int] | None = None,
    ) -> None:
        """Not for users: pools make them."""
        backend.check(options)
        self._backend = backend
        self._options = options
        # So that the pool lives as long as somebody can give it calls.
        self._owner = owner
        #: What goes with calls besides their arguments, if that is anything.
        self._carriage = carriage.of(options, numbers)

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
            fn = self._carriage.once(_function(fn))
        return self._submit(fn, args, kwargs)

    # in the accent of multiprocessing

    @overload
    def apply(self, func: Callable[[], R]) -> R: ...
    @overload
    def apply(self, func: Callable[[*Ts], R], args: tuple[*Ts]) -> R: ...
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
            func = self._carriage.once(_function(func))
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
            func = self._carriage.once(_function(func))
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
        return self.imap(func, _pulled(iterable), chunksize, progress=progress)

    def aimap_unordered(
        self,
        func: Callable[[T], R],
        iterable: Iterable[T] | AsyncIterable[T],
        chunksize: int = 1,
        *,
        progress: Progress = None,
    ) -> Results[R]:
        """As `aimap`, with each result as soon as it is there, in no particular order."""
        return self.imap_unordered(func, _pulled(iterable), chunksize, progress=progress)

    # beneath both

    def _submit(
        self,
        fn: Callable[..., R],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        callback: Callable[[R], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
        name: str | None = None,
        *,
        fed: bool = False,
        kind: type[Task[Any]] = Task,
    ) -> Task[R]:
        call = Call(_function(fn), tuple(args), dict(kwargs))
        if name is not None:  # what runs is a function of ours, with the caller's
            call.what = name
        task: Task[R] = kind(call.what, self._options, self, self._backend)
        if callback is not None or error_callback is not None:
            _check_callbacks(callback, error_callback)
            task.call_back(callback, error_callback)
        self._backend.submit(task, call, fed)
        return task

    def _task(self, name: str) -> Task[Any]:
        return Task(name, self._options, self, self._backend)

    def _map(
        self,
        fn: Callable[..., R],
        iterable: Iterable[Any],
        chunksize: int | None,
        callback: Callable[[list[R]], object] | None,
        error_callback: Callable[[BaseException], object] | None,
        progress: Progress,
        *,
        star: bool,
    ) -> Task[list[R]]:
        if chunksize is not None:
            chunksize = whole_number("chunksize", chunksize, 1)
        _function(fn)
        _check_callbacks(callback, error_callback)
        self._backend.check_open()
        name = _outcome.describe(fn)
        if self._carriage is not None:
            fn, iterable, star = self._carriage.each(fn, iterable, star=star)
        items = list(iterable)
        size = chunksize or chunks.default_size(len(items), self._backend.workers)
        pieces = list(chunks.split(items, size))
        sliced = chunksize is None and size > 1
        parts: _Parts[R] = _Parts(self, fn, pieces, star=star, sliced=sliced)
        meter = progress_.meter(progress, len(items))
        sizes = [len(piece) for piece in pieces]
        longest = math.inf if self._options.timeout is None else SLICE_SECONDS
        gather: Gather[R] = Gather(self._backend, parts.submit, sizes, meter, longest)
        whole = gather.whole = Task(f"map of {name}", self._options, control=gather)
        whole.call_back(callback, error_callback)
        gather.begin()
        return whole

    def _imap(
        self,
        fn: Callable[[Any], R],
        iterable: Iterable[Any],
        chunksize: int,
        progress: Progress,
        *,
        ordered: bool,
    ) -> Results[R]:
        chunksize = whole_number("chunksize", chunksize, 1)
        _function(fn)
        self._backend.check_open()
        iter(iterable)  # a TypeError is the caller's, and not the feeder thread's
        total = len(iterable) if isinstance(iterable, Sized) else None
        name = _outcome.describe(fn)
        if self._carriage is not None:
            fn, iterable, _ = self._carriage.each(fn, iterable, star=False)

        submit_chunk = self._backend.submit_chunk
        each = None if submit_chunk is None else packing.Each(fn, self._backend.reader)

        def submit(chunk: list[Any]) -> Task[list[tuple[bool, Any]]]:
            if submit_chunk is None or each is None:
                return self._submit(run_each, (fn, chunk), {}, name=name, fed=True)
            task = self._task(name)
            submit_chunk(task, each, chunk)
            return task

        meter = progress_.meter(progress, total)
        if isinstance(self._backend, Inline):
            packing.Each(fn, None)  # raises if it cannot travel, as everywhere
            run_each = run_each_here
            return LazyResults(submit, self._backend, iterable, chunksize, meter)
        run_each = chunks.run_each
        bound = AHEAD * self._backend.workers
        feeds, later = self._backend.feeds, self._backend.later
        return Results(submit, feeds, iterable, chunksize, later, bound, meter, ordered=ordered)


def _pulled(iterable: Iterable[T] | AsyncIterable[T]) -> Iterable[T]:
    if not isinstance(iterable, AsyncIterable):
        return iterable
    from mpkit._pool import async_input  # noqa: PLC0415  asyncio is slow to import

    return async_input.pulled(iterable)


def _function(fn: Any) -> Any:
    if not callable(fn):
        raise TypeError(f"a pool calls functions, not {fn!r}")
    return fn


def _check_callbacks(*callbacks: Any) -> None:
    for callback in callbacks:
        if callback is not None and not callable(callback):
            raise TypeError(f"a callback is a function, not {callback!r}")


def _result(task: Task[R]) -> R:
    """Return the result of a task that nobody else knows of."""
    try:
        return task.result()
    except BaseException:
        if not task.done():  # Ctrl-C, say: nobody will ever ask for it again
            task.cancel()
        raise


class _Parts(Generic[R]):
    """Submits the parts of a map: chunks, or slices of chunks that are pickled once."""

    def __init__(
        self,
        calls: Calls,
        fn: Callable[..., R],
        pieces: Sequence[Sequence[Any]],
        *,
        star: bool,
        sliced: bool,
    ) -> None:
        self._calls = calls
        self._fn = fn
        self._name = _outcome.describe(fn)
        self._pieces = pieces
        self._star = star
        #: Submits a slice; None if chunks stay whole.
        self._submit_part = calls._backend.submit_part if sliced else None

    def submit(self, part: Slice) -> Task[tuple[list[R], float]]:
        """Submit a slice of a chunk; or all of it, if it stays whole or cannot be sent again."""
        args = self._pieces[part.chunk], self._star
        if self._submit_part is not None and part.packed is None:
            call, reader = Call(self._fn, args, {}), self._calls._backend.reader
            part.packed = packing.pack_chunk(call, reader)
        if self._submit_part is None or part.packed is None:
            return self._calls._submit(chunks.run_all, (self._fn, *args), {}, name=self._name)
        task = self._calls._task(self._name)
        # With a timeout after each item, or long ones behind many short ones would exceed it.
        most = MANY if self._calls._options.timeout is None else 1
        what = packing.Part(part.packed, Bounds(part.start, part.stop, part.seconds, most))
        self._submit_part(task, what, part.start > 0)  # the pool may have been closed meanwhile
        return task
