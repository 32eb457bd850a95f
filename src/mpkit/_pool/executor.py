"""`PoolExecutor`: a pool as a `concurrent.futures.Executor`, for libraries that ask for one."""

from __future__ import annotations

import itertools
import os
from collections import deque
from concurrent.futures import Executor, wait
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar

from mpkit._describe import describe
from mpkit._errors import PoolClosed
from mpkit._pickling import Stays
from mpkit._task.options import whole_number
from mpkit._wait import Deadline
from mpkit._worker import chunks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from mpkit._engine.backend import Backend
    from mpkit._task.carriage import Carriage
    from mpkit._task.task import Task

P = ParamSpec("P")
R = TypeVar("R")


class Submit(Protocol):
    """Gives a pool a call, with the options of some view of it."""

    def __call__(
        self,
        fn: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        *,
        name: str | None = None,
    ) -> Task[Any]: ...


class PoolExecutor(Stays, Executor):
    """A `concurrent.futures.Executor` over a pool. `TaskPool.executor` returns one.

    What it submits are `Task` objects, with the options of that view of the pool. They may be
    mixed with the futures of others in `concurrent.futures.wait` and `concurrent.futures.as_completed`.

    It keeps its pool alive, and can be shut down by itself: see `shutdown`.
    """

    def __init__(self, submit: Submit, backend: Backend, carriage: Carriage | None = None) -> None:
        """Not for users: pools make them."""
        self._carriage = carriage
        self._give = submit  # keeps the pool alive
        self._backend = backend
        self._pid = os.getpid()
        self._shut_down = False
        #: What it was given, and has not ended.
        self._pending: set[Task[Any]] = set()

    @property
    def _max_workers(self) -> int:
        """The number of workers, where Dask and others look for it."""
        return self._backend.workers

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Task[R]:
        """Have a worker call ``fn(*args, **kwargs)``; return its `Task` at once.

        Raises:
            NotPicklable: the function or an argument cannot travel.
            PoolClosed: the pool or this executor takes no more tasks.

        """
        laden = fn if self._carriage is None else self._carriage.once(fn)
        return self._submit(laden, args, kwargs)

    def map(
        self,
        fn: Callable[..., R],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[R]:
        """Return an iterator over the results of ``map(fn, *iterables)``, in order.

        All that was not begun is cancelled when an item fails, when the time is over, and
        when the iterator is closed or dropped before its end. (One of which nothing was
        taken is no such: its calls are run, as by other executors.)

        Args:
            fn: called with an item of each of the iterables.
            *iterables: the items, until the shortest ends.
            timeout: seconds from now until the last result has to be there.
            chunksize: items per task. One that fails fails all of its task.
            buffersize: how many tasks may be submitted whose results were not taken. The
                input is pulled by who takes them, so far ahead: it may be endless. None
                pulls and submits all of it before this returns.

        Raises:
            ResultTimeout: (by the iterator) the next result was not there in time.
            Exception: (by the iterator) what an item's call raised.
            PoolClosed: the pool or this executor takes no more tasks.
            NotPicklable: the function or an item cannot travel.

        Example:
            >>> import itertools, mpkit
            >>> with mpkit.TaskPool(2) as pool:
            ...     powers = pool.executor.map(pow, itertools.count(), [2, 2, 3], buffersize=4)
            ...     list(powers)
            [0, 1, 8]

        """
        size = whole_number("chunksize", chunksize, 1)
        ahead = None if buffersize is None else whole_number("buffersize", buffersize, 1)
        # A deadline that has passed is an argument like any other, for executors.
        over = isinstance(timeout, (int, float)) and timeout < 0
        deadline = Deadline(0 if over else timeout)
        self._check_open()
        items: Iterable[Any] = zip(*iterables)
        star, name = True, describe(fn)
        if self._carriage is not None:
            fn, items, star = self._carriage.each(fn, items, star=star)
        pieces = chunks.split(items, size)

        def submit(piece: list[Any]) -> Task[Any]:
            if size == 1:
                return self._submit(fn, piece[0] if star else (piece[0],), {})
            return self._submit(chunks.run_all, (fn, piece, star), {}, name=name)

        line: deque[Task[Any]] = deque()
        try:
            line.extend(submit(piece) for piece in itertools.islice(pieces, ahead))
        except BaseException:  # the input's, say: nobody will ask for these
            _cancel(line)
            raise
        return _results(line, map(submit, pieces), deadline, size)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls.

        The executor of a pool (`TaskPool.executor`) closes it. That of a view
        (``pool.options(...).executor``) ends alone, and the pool and its other views go on.

        Args:
            wait: block until what was submitted has ended: by this executor, or to the
                whole pool, if it is closed; then the workers have left, too.
            cancel_futures: cancel of that what has not begun.

        """
        self._shut_down = True
        pending = list(self._pending)
        if self._pid != os.getpid():
            return  # a forked child has copies of tasks, which nobody will settle
        if cancel_futures:
            _cancel(pending)
        if wait:
            self._wait_for(pending)

    def _submit(
        self,
        fn: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        *,
        name: str | None = None,
    ) -> Task[Any]:
        self._check_open()
        task = self._give(fn, args, kwargs, name=name)
        # In this order, as `shutdown` looks in the other one: one of them sees the other.
        self._pending.add(task)
        task.add_done_callback(self._forget)
        if self._shut_down and task.cancel():
            self._check_open()
        return task

    def _forget(self, task: Any) -> None:
        self._pending.discard(task)

    def _check_open(self) -> None:
        self._backend.check_open()
        if self._shut_down:
            raise PoolClosed("the executor", "it was shut down")

    def _wait_for(self, tasks: Sequence[Task[Any]]) -> None:
        for task in tasks:
            if not task.done():
                self._backend.check_waiter(task)
        wait(tasks)


class WholeExecutor(PoolExecutor):
    """The executor of a pool, by which it is closed."""

    def __init__(
        self,
        submit: Submit,
        backend: Backend,
        close: Callable[[], None],
        join: Callable[[], object],
        carriage: Carriage | None = None,
    ) -> None:
        super().__init__(submit, backend, carriage)
        self._close = close
        self._join = join

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Close the pool."""
        if cancel_futures:
            self._backend.cancel_waiting()
        self._close()
        if wait:
            self._join()

    def _submit(
        self,
        fn: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        *,
        name: str | None = None,
    ) -> Task[Any]:
        return self._give(fn, args, kwargs, name=name)  # the pool itself knows what it has


def _results(
    line: deque[Task[Any]], more: Iterator[Task[Any]], deadline: Deadline, size: int
) -> Iterator[Any]:
    """Yield the results of tasks in their order; submit another one for each that was taken."""
    try:
        while line:
            # No reference to the task or its result stays behind: it may be a large one.
            if size == 1:
                yield _result(line, deadline)
            else:
                values, _ = _result(line, deadline)
                values.reverse()
                while values:
                    yield values.pop()
            line.extend(itertools.islice(more, 1))
    finally:
        _cancel(line)
        line.clear()  # an exception knows this frame, and its task the exception


def _result(line: deque[Task[Any]], deadline: Deadline) -> Any:
    """Take the result of the first task; that stays in the line if it has none in time."""
    task = line[0]
    try:
        value = task.result(deadline.left())
        line.popleft()
        return value
    finally:
        del task  # for the same reason


def _cancel(tasks: Iterable[Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
