"""`TaskPool`: the facade, and how a pool begins and ends."""

from __future__ import annotations

import os
import sys
import warnings
from typing import TYPE_CHECKING, Any, Self

from mpkit._engine.engine import Engine
from mpkit._engine.settings import settled
from mpkit._platform import stdlib
from mpkit._pool.calls import Calls
from mpkit._pool.executor import WholeExecutor
from mpkit._pool.inline import Inline

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from multiprocessing.context import BaseContext
    from types import TracebackType

    from typing_extensions import Unpack

    from mpkit._engine.backend import Backend
    from mpkit._engine.settings import PoolSettings
    from mpkit._platform.threads import Threads
    from mpkit._pool.executor import PoolExecutor
    from mpkit._task.options import Options
    from mpkit._watch.report import Report
    from mpkit._watch.stats import Stats
    from mpkit._watch.trace import Trace


class TaskPool(Calls):
    """Worker processes that run calls: ``multiprocessing.Pool`` and an executor in one.

    For many calls, short or long. Programs written for ``multiprocessing.Pool`` run
    unchanged with ``from mpkit import TaskPool as Pool``; `submit` and `executor` speak
    the language of `concurrent.futures`.

    As a context manager, a pool leaves by finishing its work. When the block raises, it
    cancels what waits, stops what runs, and that exception goes on. (The ``with`` of
    ``multiprocessing.Pool`` drops its tasks either way.)

    A worker that dies fails the task that it was running, with `WorkerDied`, and no
    other: it is replaced, and what was queued behind it runs elsewhere. A task is never
    run twice unless ``retries`` says so. If this process dies, however, its workers die
    with it. They are not daemonic: tasks may start processes and pools of their own.

    A pool may be used by any thread of the process that made it, and by no other
    process. One that is open when the program ends, or when nobody refers to it, is
    terminated with a ResourceWarning.

    Args:
        workers: how many processes; None is what ``MPKIT_WORKERS`` in the environment says, or
            else one for each core that this process may use (affinity, CPU quotas of a
            container). 0 runs each call right here when it is submitted, for debugging: what
            else is given may stay as it is.
        initializer: called once in each worker, before its first task. If it raises in
            three workers in a row, or ends as many as there are and three more, every
            task fails with `WorkerInitError`.
        initargs: its arguments.
        tasks_per_worker: how many tasks until a worker is replaced; None is never. A
            chunk of a map, or a slice of it, is one task.
        context: a start method ("fork", "forkserver", "spawn") or a multiprocessing
            context; None is ``multiprocessing.get_context()``.
        memory_limit: bytes of resident memory above which a worker is replaced, once the
            task that it runs has ended. None is no limit.
        memory_hard_limit: bytes above which it is killed, whatever it runs, within some
            0.1 s; the task fails with `MemoryLimitExceeded`. (Linux)
        finalizer: called without arguments in each worker that leaves, after its last task:
            when the pool is done, or the worker is replaced. What it raises is reported like
            an uncaught exception, and harms nobody. A worker that is killed, as all of a
            pool that is terminated, calls none.
        shared: an object that tasks read by `shared`: pickled once, sent once to each worker.
        log: have what workers log and warn of handled in this process, by its loggers of the
            same names, with their levels, filters and handlers. A level ("INFO") leaves out
            what is below it; True does not. None leaves logging in workers alone.
        capture: keep what a task writes to standard output and error, in `Task.output`, and
            show the end of it in the notes of its error; it is not printed then.
        on: run on this `concurrent.futures.Executor` instead of own workers. It is not
            shut down with the pool. What an executor has no means for is refused.
        threads_per_worker: how many threads libraries (OpenMP, OpenBLAS, MKL, BLIS, Accelerate,
            NumExpr) start in each worker. None is its share of the cores, one at least, but
            variables such as ``OMP_NUM_THREADS`` win; 0 leaves it to them. What a forked
            worker has loaded from its birth obeys if ``threadpoolctl`` is installed.
        processes: multiprocessing's name for ``workers``.
        maxtasksperchild: multiprocessing's name for ``tasks_per_worker``.
        options: `Options` that hold for all calls.
        **settings: those from ``memory_limit`` on, and those of `options` one by one.

    Raises:
        TypeError: an argument is of the wrong type, or given twice.
        ValueError: an argument makes no sense, or the executor cannot honour it.
        NotPicklable: the initializer cannot travel to a worker.

    Example:
        >>> with TaskPool(2) as pool:
        ...     task = pool.submit(pow, 2, 10)
        ...     squares = pool.map(abs, [-1, -2, -3])
        >>> task.result(), squares
        (1024, [1, 2, 3])

    """

    def __init__(
        self,
        workers: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        tasks_per_worker: int | None = None,
        context: BaseContext | str | None = None,
        **settings: Unpack[PoolSettings],
    ) -> None:
        made = settled(workers, initializer, initargs, tasks_per_worker, context, **settings)
        backend: Backend
        if made.on is not None:
            from mpkit._pool.on_executor import OnExecutor  # noqa: PLC0415  imports queues, threads

            backend = OnExecutor(made.on)
        elif made.workers == 0:
            backend = Inline(made)
        else:
            backend = Engine(made)
        self._begin(backend, made.options, made.setup.threads)

    def _begin(self, backend: Backend, options: Options, threads: Threads | None = None) -> None:
        """Be a pool on this, which is ended by whoever gets an error from here."""
        backend.check(options)  # one that has workers refuses nothing
        self._opened_at = _caller()
        self._pid = os.getpid()
        self._closed = False
        self._threads = threads
        # Before anything can raise: from here on nobody has to remember the workers.
        self._finalizer = stdlib.call_when_gone(
            self, _abandon, (backend, self._opened_at, self._pid), 5
        )
        super().__init__(backend, options, None)

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        return f"<TaskPool of {self._backend.workers} workers, made at {self._opened_at}: {state}>"

    @property
    def threads_per_worker(self) -> int | None:
        """How many threads numerical libraries are told to start in each worker.

        Where the environment does not say otherwise. None if they are told nothing.
        """
        return None if self._threads is None else self._threads.number

    @property
    def executor(self) -> PoolExecutor:
        """A `concurrent.futures.Executor` over the same workers.

        For asyncio's ``run_in_executor``, Dask, SciPy, and whoever asks for one. Shutting
        it down closes the pool; that of a view (``pool.options(retries=2).executor``) only
        ends itself.

        Example:
            >>> with TaskPool(2) as pool:
            ...     list(pool.executor.map(pow, [2, 3], [5, 2]))
            [32, 9]

        """
        return WholeExecutor(self._submit, self._backend, self.close, self.join, self._carriage)

    def stats(self) -> Stats:
        """Return what the pool did until now: counts, what each worker did, how long functions took."""
        return self._backend.recorder.stats()

    def trace(self, path: str | os.PathLike[str]) -> Trace:
        """Record a timeline from now on, and write it to ``path`` as Chrome trace events.

        Perfetto (https://ui.perfetto.dev) shows it, a lane for each worker. The file ends
        when the returned object is closed (it is a context manager), and at the latest when
        the pool does. It is valid JSON all the while.

        Raises:
            OSError: the file cannot be written, or is none in which one can go back.
            PoolClosed: the pool has ended.
            ValueError: the pool runs on somebody else's executor, whose workers it does
                not see.

        """
        self._check_visible("trace")
        return self._backend.recorder.trace(path)

    def report(self, path: str | os.PathLike[str]) -> Report:
        """Record what happens from now on, and write it to ``path`` as a page for a browser.

        With a timeline, the functions, the slowest tasks, and what went wrong; it needs no
        network. The page is written when the returned object is closed (it is a context
        manager), and at the latest when the pool ends. However many tasks there are, its size
        and what is kept for it have bounds: see `Report`.

        Raises:
            OSError: the file cannot be written.
            PoolClosed: the pool has ended.
            ValueError: the pool runs on somebody else's executor, whose workers it does
                not see.

        Example:
            >>> import pathlib, tempfile
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     page = pathlib.Path(folder, "run.html")
            ...     with TaskPool(2) as pool, pool.report(page):
            ...         squares = pool.map(abs, [-1, -2, -3])
            ...     "Slowest tasks" in page.read_text(encoding="utf-8")
            True

        """
        self._check_visible("report on")
        return self._backend.recorder.report(path)

    def _check_visible(self, what: str) -> None:
        from mpkit._pool.on_executor import OnExecutor  # noqa: PLC0415  as above

        if isinstance(self._backend, OnExecutor):
            raise ValueError(f"a pool with on= does not see its workers, and cannot {what} them")

    def close(self) -> None:
        """Take no more tasks. The workers leave when they have done those there are.

        The input of an `imap` that was begun is still read, to its end.
        """
        self._closed = True
        if self._is_ours():
            self._backend.close()
            # It needs nobody any more to end it; but the program waits for its work.
            self._finalizer.cancel()
            self._finalizer = stdlib.call_when_gone(self, _finish, (self._backend, self._pid), 5)

    def _is_ours(self) -> bool:
        """Tell whether this is the process that made the pool; in another one it is nothing."""
        return self._pid == os.getpid()

    def terminate(self) -> None:
        """Take no more tasks; cancel those that wait, and kill what runs. Does not wait.

        A task that was running fails with `WorkerDied`.
        """
        self._closed = True
        if self._is_ours():
            self._backend.terminate()

    def join(self, timeout: float | None = None) -> bool:
        """Wait until every task is settled and the workers have left.

        Args:
            timeout: seconds to wait; None waits for ever.

        Returns:
            Whether they have.

        Raises:
            ValueError: neither `close` nor `terminate` was called.

        """
        if not self._closed:
            raise ValueError(f"{self!r} still takes tasks: close() or terminate() it first")
        over = not self._is_ours() or self._backend.join(timeout)
        if over:
            self._finalizer.cancel()
        return over

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._is_ours():
            return
        if kind is not None:
            self.terminate()
        self._backend.feeds.stop()  # it may be endless
        self.close()
        try:
            self.join()
        except BaseException:  # Ctrl-C, say: do not finish the work after all
            self.terminate()
            self.join()
            raise

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        import asyncio  # noqa: PLC0415  who awaits has it; nobody else should pay for it

        if kind is not None:
            self.terminate()
        self._backend.feeds.stop()
        self.close()
        try:
            await asyncio.to_thread(self.join)
        except BaseException:
            self.terminate()
            raise


def _finish(backend: Backend, pid: int) -> None:
    """Wait for the work of a pool that was closed, at the end of the program.

    Or when it is garbage: then it has no work, for a pending task keeps it.
    """
    if pid == os.getpid() and not backend.is_own_thread():
        backend.join(None)


def _abandon(backend: Backend, opened_at: str, pid: int) -> None:
    """End a pool that nobody ended."""
    if pid != os.getpid():
        return
    try:
        warnings.warn_explicit(  # at the line to be mended: no frame of it is left to point to
            f"the TaskPool made here ({opened_at}) was never closed, and is terminated: "
            "use it in a with statement",
            ResourceWarning,
            filename=opened_at.rpartition(":")[0],
            lineno=int(opened_at.rpartition(":")[2]),
        )
    finally:  # also under -W error
        backend.terminate()
        if not backend.is_own_thread():
            backend.join(None)


def _caller() -> str:
    """Return file and line of the code outside mpkit that makes a pool."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("mpkit."):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
