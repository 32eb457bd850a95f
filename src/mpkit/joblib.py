"""`TaskPool` as a backend of joblib, and so of scikit-learn's ``n_jobs``.

To import this module registers it, under the name ``"mpkit"``. (joblib knows by itself only of
the backends in a table of its own, which `import mpkit` cannot write into without importing
joblib.) It needs ``mpkit[joblib]``.
"""

from __future__ import annotations

import functools
import multiprocessing
import threading
import warnings
from collections import deque
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, cast

try:
    import joblib
    from joblib.parallel import (
        AutoBatchingMixin,
        FallbackToBackend,
        ParallelBackendBase,
        SequentialBackend,
    )
except ImportError as _error:
    raise ImportError("mpkit.joblib needs joblib: pip install 'mpkit[joblib]'") from _error

from mpkit._describe import describe
from mpkit._pool.calls import Calls
from mpkit._pool.pool import TaskPool
from mpkit._task import carriage
from mpkit._task.options import Options
from mpkit._task.task import Task

__all__ = ["MpkitBackend"]

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Unpack

    from mpkit._task.options import OptionNames

#: What joblib tells every backend, for its own files of memory-mapped arrays. mpkit has none:
#: large arrays travel through shared memory whatever these say.
_OF_ITS_FILES = ("max_nbytes", "temp_folder", "verbose")


if TYPE_CHECKING:

    class _Backend:
        """What is used of joblib's two classes, which have no types."""

        nesting_level: int | None

        def __init__(self, *, nesting_level: int | None) -> None: ...
        def compute_batch_size(self) -> int: ...
        def reset_batch_stats(self) -> None: ...
else:

    class _Backend(AutoBatchingMixin, ParallelBackendBase):
        """What joblib asks of a backend, and how it sizes batches of short calls."""


class MpkitBackend(_Backend):
    """Runs the calls of ``joblib.Parallel`` in a `mpkit.TaskPool`.

    Each ``Parallel`` has a pool of its own while it runs (in a ``with Parallel(...)``, for the
    whole block), with the start method that the program has. Give it one to have workers that
    stay, or with other settings.

    A worker that dies fails ``Parallel`` with `mpkit.WorkerDied`. When it fails, by whatever it is,
    its calls that run are ended by killing their workers; others in the same pool go on.
    joblib sends short calls in batches, and options are for a batch. But with a ``timeout``, a
    batch is one call; and with a ``seed``, each call has random numbers of its own.

    Args:
        pool: an open pool, or a view of one, which is used instead. ``n_jobs`` is at most its
            number of workers then.
        nesting_level: joblib's own.
        **options: as of `mpkit.TaskPool.options`. They can be given to ``parallel_config``,
            and to ``Parallel`` those that it has no meaning of its own for.

    Raises:
        TypeError: the pool is none, or there is no such option.
        ValueError: an option makes no sense, or the pool cannot honour it.

    Example:
        >>> import joblib, mpkit.joblib
        >>> with joblib.parallel_config("mpkit", n_jobs=2, retries=1):
        ...     joblib.Parallel()(joblib.delayed(pow)(n, 2) for n in range(4))
        [0, 1, 4, 9]

    """

    supports_retrieve_callback = True
    #: Who names this backend wants it to be used, and not one process without any.
    default_n_jobs = -1

    def __init__(
        self,
        pool: Calls | None = None,
        *,
        nesting_level: int | None = None,
        **options: Unpack[OptionNames],
    ) -> None:
        if pool is not None and not isinstance(pool, Calls):
            raise TypeError(f"pool is a TaskPool or a view of one, not {pool!r}")
        super().__init__(nesting_level=nesting_level)
        self._options = Options().changed(**options)
        self._pool = pool
        self._given = options
        #: What takes the calls, and the pool behind it if that is ours to close.
        self._calls: Calls | None = pool.options(**options) if pool is not None else None
        self._own: TaskPool | None = None
        #: What goes with each call, and not with a batch of them: those are as time has it.
        calls = self._calls
        self._carriage = carriage.of(self._options, None) if calls is None else calls._carriage
        #: The `joblib.Parallel` whose backend this is: see `configure`. (joblib's name for it.)
        self.parallel: Any = None
        #: How many batches may run at a time, if the pool has more workers.
        self._most: int | None = None
        self._lock = threading.Lock()
        self._waiting: deque[tuple[Any, Callable[[Any], object] | None]] = deque()
        self._begun = 0
        self._running: set[Future[Any]] = set()
        #: For each thread that runs a callback now: those that it has to run next.
        self._next: dict[int, deque[tuple[Callable[[Any], object] | None, Future[Any]]]] = {}

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Return how many calls run at a time if so many are asked for, as joblib is to see it.

        One job it runs itself, without any pool. But a pool and options are given to be used:
        so if it is not one that was asked for, but one worker or core that there is, it is
        told two, which take turns.
        """
        if n_jobs == 1:
            return 1
        if self._pool is None and multiprocessing.current_process().daemon:
            warnings.warn("a daemonic process can have no workers: n_jobs=1", stacklevel=3)
            return 1
        jobs = self._jobs(n_jobs)
        return jobs if self._pool is None and not self._given else max(2, jobs)

    def _jobs(self, n_jobs: int | None) -> int:
        if n_jobs == 0:
            raise ValueError("n_jobs is 1 or more, or counts down from -1, all cores; not 0")
        if n_jobs is None:
            n_jobs = self.default_n_jobs
        most = joblib.cpu_count() if self._pool is None else self._pool._backend.workers
        if n_jobs < 0:
            return int(max(1, most + 1 + n_jobs))
        return n_jobs if self._pool is None else min(n_jobs, most)

    def configure(
        self,
        n_jobs: int = 1,
        parallel: Any = None,
        prefer: object = None,
        require: object = None,
        context: Any = None,
        mmap_mode: str | None = None,
        **others: Any,
    ) -> int:
        """Have a pool ready; return how many calls it runs at a time.

        Called when a ``Parallel`` begins, and when it is entered.
        """
        if parallel is not self.parallel:
            # One object for each, and not one for all in the block of a `parallel_config`: of
            # these there may be several at a time, and joblib does not say which of them ends.
            for name in _OF_ITS_FILES:
                others.pop(name, None)
            asked = set(others)
            mine = MpkitBackend(
                others.pop("pool", self._pool),
                nesting_level=self.nesting_level,
                **cast("OptionNames", {**self._given, **others}),
            )
            mine.parallel = parallel
            if not {"pool", "seed"} & asked:
                mine._carriage = self._carriage  # which counts the calls of all of them
            raise FallbackToBackend(mine)
        if mmap_mode in ("r+", "w+"):
            raise ValueError(
                f"mmap_mode={mmap_mode!r} cannot be honoured: mpkit gives workers copies of "
                "arrays, and what they write there is not seen here"
            )
        told = self.effective_n_jobs(n_jobs)
        if told == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        jobs = self._jobs(n_jobs)
        if self._pool is None:
            self._calls = self._own = TaskPool(jobs, context=context, options=self._options)
        else:
            self._most = jobs if jobs < self._pool._backend.workers else None
        return told

    def compute_batch_size(self) -> int:
        """Return how many calls to send at a time: more if they are short, unless timed."""
        calls = self._calls
        timed = calls is not None and calls._options.timeout is not None
        return 1 if timed else super().compute_batch_size()

    def submit(self, func: Any, callback: Callable[[Any], object] | None = None) -> None:
        """Have a worker run a batch of calls, and ``callback`` called with its future."""
        self._waiting.append((func, callback))
        self._begin()

    def _begin(self) -> None:
        """Give the pool what waits, as much as may run at a time."""
        while True:
            with self._lock:
                if not self._waiting or self._begun == self._most:
                    return
                func, callback = self._waiting.popleft()
                self._begun += 1
            future = self._give(func)
            self._running.add(future)
            future.add_done_callback(functools.partial(self._ended, callback))

    def _give(self, func: Any) -> Future[Any]:
        assert self._calls is not None
        try:
            name = describe(func.items[0][0])
            if self._carriage is not None:
                once = self._carriage.once
                func.items = [(once(fn), args, kwargs) for fn, args, kwargs in func.items]
            return self._calls._submit(func, (), {}, name=name)
        except Exception as error:  # noqa: BLE001  for who waits: most calls are from a callback
            failed: Future[Any] = Future()
            failed.set_exception(error)
            return failed

    def _ended(self, callback: Callable[[Any], object] | None, future: Future[Any]) -> None:
        """Submit what waits, and call ``callback``, which submits the next batch.

        That may have ended when this sees it, and in a pool without workers it always has. So
        its callback is not called from inside of this one, but when this has returned.
        """
        thread = threading.get_ident()
        if thread in self._next:
            self._next[thread].append((callback, future))
            return
        line = self._next[thread] = deque([(callback, future)])
        try:
            while line:
                callback, future = line.popleft()
                with self._lock:
                    self._begun -= 1
                self._running.discard(future)
                self._begin()
                if callback is not None:
                    callback(future)
        finally:
            del self._next[thread]

    def retrieve_result_callback(self, out: Future[Any]) -> Any:
        """Return what became of a batch, or raise that."""
        return out.result()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """End all that this ``Parallel`` has submitted: it failed, and wants none of it."""
        self._waiting.clear()
        if self._own is not None and not ensure_ready:
            self._own.terminate()
            return
        for future in list(self._running):
            if isinstance(future, Task):
                future.kill()

    def terminate(self) -> None:
        """Let the workers go, if they are ours: the ``Parallel`` has ended."""
        own, self._own = self._own, None
        if own is not None:
            with own:  # leaves by ending it
                pass
        self.reset_batch_stats()


_register: Any = getattr(joblib, "register_parallel_backend")  # noqa: B009  it has no types
_register("mpkit", MpkitBackend)
