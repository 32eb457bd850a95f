"""The pool's processes, and the one thread that runs them.

The supervisor thread owns everything here: the schedule, the workers, the ledger of
tasks that are not settled. Other threads only append to its inbox and wake it. It
waits, in one poll and without a timeout unless a task has one, for that wake-up, for
what workers report, and for their deaths; turns these into events of the `Schedule`;
and performs the actions that the schedule decides on.

No lock is shared between processes, so no dead one can hold any.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import selectors
import signal
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

from mpkit import _fork, _outcome, _parcel
from mpkit._errors import PoolClosed, TaskTimeout, WorkerDied, WorkerInitError
from mpkit._pool import wire
from mpkit._pool.crew import Worker
from mpkit._pool.dispatch import Dispatch
from mpkit._pool.ledger import Ledger
from mpkit._pool.results import Feeds
from mpkit._pool.schedule import (
    MOST_START_FAILURES,
    Abandon,
    Lose,
    Retire,
    Schedule,
    Send,
    Spawn,
    TakeBack,
)
from mpkit._pool.stats import Recorder
from mpkit._process import GRACE
from mpkit._wait import Deadline

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from multiprocessing.context import BaseContext

    from mpkit._parcel import Parcel
    from mpkit._pool.options import Options
    from mpkit._pool.schedule import Action
    from mpkit._pool.task import Task
    from mpkit._process import Call


_CLOSED = "it was closed"
_STOPPED = "was stopped with its pool"


class Engine:
    """Runs tasks on processes of its own. See the module's docstring for who owns what."""

    def __init__(
        self,
        workers: int,
        context: BaseContext,
        *,
        init: Call | None = None,
        tasks_per_worker: int | None = None,
        memory_limit: int | None = None,
    ) -> None:
        self.workers = workers
        self.recorder = Recorder()
        self.feeds = Feeds()
        self._context = context
        self._init = init
        self._memory_limit = memory_limit
        self._schedule = Schedule(workers, tasks_per_worker)
        self._crew: dict[int, Worker] = {}
        self._numbers = itertools.count()
        self._ledger = Ledger()
        self._dispatch = Dispatch(self._crew, self._ledger, self._schedule)
        self._init_error: BaseException | None = None
        self._closed_because: str | None = None
        self._terminated = False
        self._inbox: deque[Callable[[], None]] = deque()
        self._woken = False
        self._over = threading.Event()
        # Held by who wakes the supervisor, and by the supervisor while it ends: so that
        # nobody wakes what is no longer there.
        self._ending = threading.RLock()
        self._pid = os.getpid()
        self._selector = selectors.DefaultSelector()
        with _fork.guard:
            self._wake_reader, self._wake_writer = os.pipe()
            _fork.know(self)
        self._selector.register(self._wake_reader, selectors.EVENT_READ, self._woke)
        # The first workers start here: a fork is safest while there are few threads.
        try:
            self._act()
        except BaseException:
            self._stop_workers()
            self._release()
            raise
        self._thread = threading.Thread(target=self._supervise, name="mpkit pool", daemon=True)
        self._thread.start()

    # called by any thread

    def check(self, options: Options) -> None:
        """There is no option that this backend cannot honour."""

    def submit(self, task: Task[Any], call: Call, fed: bool = False) -> None:
        """Pack the call here, in the caller's thread, and hand it to the supervisor.

        Raises NotPicklable, naming what cannot travel, and `PoolClosed`.
        """
        self.check_open(fed)
        parcel = _parcel.pack((call.fn, call.args, call.kwargs), f"{call.what}(...)")
        parcel.own()
        parcel.depart(f"moved to the worker that runs {task.name}")
        self._tell(lambda: self._submitted(task, parcel))

    def close(self) -> None:
        """Take no more tasks; the workers leave when all are done."""
        if self._closed_because is None:
            self._closed_because = _CLOSED
            self.feeds.close(lambda: self._tell(self._schedule.close))

    def terminate(self) -> None:
        """Take no more tasks, cancel those that wait, kill the workers. Does not wait."""
        self._closed_because = "it was terminated"
        self.feeds.stop()
        self._tell(self._terminate)

    def join(self, timeout: float | None) -> bool:
        """Wait until the workers have left and every task is settled."""
        if self.is_own_thread():
            raise RuntimeError("a callback of a pool cannot wait for the end of the pool")
        return self._over.wait(timeout)

    def cancel_waiting(self) -> None:
        """Cancel the tasks that were not sent to a worker yet."""
        self._tell(self._ledger.cancel_waiting)

    def is_own_thread(self) -> bool:
        """Tell whether the calling thread is one that `join` would wait for."""
        return threading.current_thread() is self._thread

    def check_open(self, fed: bool = False) -> None:
        if self._pid != os.getpid():
            why = f"it belongs to process {self._pid}; make one in this process"
            raise PoolClosed("the pool", why)
        why_not = self._closed_because
        if why_not is not None and not (fed and why_not == _CLOSED):
            raise PoolClosed("the pool", why_not)

    def _tell(self, message: Callable[[], None]) -> None:
        self._inbox.append(message)
        # The supervisor clears the flag before it looks into the inbox: if it is set
        # here, what we appended is yet to be seen.
        if not self._woken:
            self._woken = True
            with self._ending:
                if self._over.is_set():
                    self._refuse_the_rest()
                else:
                    os.write(self._wake_writer, b"!")

    def _refuse_the_rest(self) -> None:
        """Settle what was submitted when it was too late. Holds _ending."""
        while self._inbox:
            self._inbox.popleft()()
        self._ledger.settle_all(_STOPPED)
        self._woken = False

    # the supervisor thread

    def _supervise(self) -> None:
        try:
            while not self._schedule.over:
                for key, _ in self._selector.select(self._ledger.next_deadline()):
                    key.data()
                while self._inbox:
                    self._inbox.popleft()()
                for entry in self._ledger.expired():
                    assert entry.worker is not None
                    self._crew[entry.worker].child.signal(signal.SIGKILL)
                self._act()
        finally:
            # Reached by an error only if mpkit has a bug: then nobody must wait for ever.
            self._closed_because = self._closed_because or "its supervisor failed"
            self._stop_workers()
            with self._ending:
                self._over.set()
                self._refuse_the_rest()
            self._release()  # nobody wakes us any more
            self.recorder.close()

    def _woke(self) -> None:
        os.read(self._wake_reader, 512)
        self._woken = False

    def _submitted(self, task: Task[Any], parcel: Parcel) -> None:
        self.recorder.submitted += 1
        self._ledger.add(task, parcel)
        if self._terminated:  # it was being packed meanwhile
            self._ledger.settle_all(_STOPPED)
        else:
            self._queue(task)

    def _queue(self, task: Task[Any]) -> None:
        options = task.options
        alone = options.timeout is not None
        self._schedule.submitted(task.number, priority=options.priority, alone=alone)

    def _terminate(self) -> None:
        self._terminated = True
        self._stop_workers()
        self._ledger.settle_all(_STOPPED)
        self._schedule.stop()

    # what workers say

    def _read_reports(self, number: int) -> None:
        """Take in what a worker has reported."""
        worker = self._crew.get(number)
        if worker is None:  # it ended in the same round
            return
        for message, fds in worker.reports():
            match message:
                case wire.Done():
                    self._done(number, message, fds)
                case wire.Ready():
                    self._schedule.started(number)
                case wire.InitFailed(error):
                    self._init_error = _unpack_error(error, fds)
        if worker.hung_up:  # its death, which we watch, will tell us more
            self._unwatch(worker.outbox.fd)

    def _done(self, number: int, done: wire.Done, fds: list[int]) -> None:
        worker = self._crew[number]
        worker.reported(done.task)
        name = self._ledger[done.task].task.name
        failed = done.outcome[:1] == _outcome.FAILED
        self._schedule.finished(number, done.task, done.ended - done.began)
        self.recorder.task_ended(worker.pid, name, done.began, done.ended, failed)
        if self._memory_limit is not None and done.resident > self._memory_limit:
            self._perform(self._schedule.retire(number))
        if failed:
            self._failed(done.task, _unpack_error(done.outcome[1:], fds))
            return
        try:
            value = _outcome.unpack_result(name, done.outcome[1:], fds)
        except BaseException as error:  # noqa: BLE001  unpickling is user code
            self._failed(done.task, error)
        else:
            self._ledger.settle(done.task, value, None)

    def _ended(self, number: int) -> None:
        """A worker's process has ended: take in its last words, and what it left unread."""
        worker = self._crew[number]
        worker.child.join(None)
        while worker.has_reports():
            self._read_reports(number)
        self._dispatch.returned(number, worker.take_back())
        self._schedule.died(number)
        self._unwatch(worker.outbox.fd)
        self._unwatch(worker.child.sentinel)
        self.recorder.worker_ended(worker.pid, worker.ended, worker.retiring)
        # The errors of what it ran name its process, so they are made before it is gone.
        self._act()
        del self._crew[number]
        worker.close()

    def _unwatch(self, fd: int) -> None:
        """Watch a descriptor no more, before it is closed; again is fine.

        A closed one would stay with epoll for as long as a forked child has a copy of it,
        and its events would then be taken for those of the next one with that number.
        """
        with contextlib.suppress(KeyError):
            self._selector.unregister(fd)

    # what the schedule decides

    def _act(self) -> None:
        self._perform(self._schedule.decide())

    def _perform(self, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case Send(number, tasks):
                    self._dispatch.send(number, tasks)
                case Spawn():
                    self._spawn()
                case TakeBack(number):
                    self._dispatch.returned(number, self._crew[number].take_back())
                case Retire(number):
                    self._crew[number].retire()
                case Lose(task, number):
                    self._lost(task, self._crew[number])
                case Abandon(task):
                    self._abandoned(task)

    def _spawn(self) -> None:
        report_memory = self._memory_limit is not None
        try:
            worker = Worker(self._context, self._init, report_memory=report_memory)
        except OSError:
            self._schedule.spawn_failed()
            return
        number = next(self._numbers)
        self._crew[number] = worker
        watch = functools.partial(self._selector.register, events=selectors.EVENT_READ)
        watch(worker.outbox.fd, data=functools.partial(self._read_reports, number))
        watch(worker.child.sentinel, data=functools.partial(self._ended, number))
        self.recorder.worker_started(worker.pid)
        self._schedule.spawned(number)

    # how tasks end

    def _lost(self, task: int, worker: Worker) -> None:
        entry = self._ledger[task]
        name = entry.task.name
        self.recorder.lost += 1
        error: BaseException
        if entry.timed_out:
            assert entry.task.options.timeout is not None
            error = TaskTimeout(name, entry.task.options.timeout)
        else:
            error = WorkerDied(name, worker.pid, worker.child.exitcode, worker.ended)
        self._failed(task, error, crashed=True)

    def _failed(self, task: int, error: BaseException, *, crashed: bool = False) -> None:
        if self._ledger.runs_again(task, error, crashed=crashed):
            self._queue(self._ledger[task].task)
        else:
            self._ledger.settle(task, None, error)

    def _abandoned(self, task: int) -> None:
        why = str(self._init_error) if self._init_error else "they ended before they had begun"
        error = WorkerInitError(MOST_START_FAILURES, why)
        error.__cause__ = self._init_error
        self._ledger.settle(task, None, error)

    # the end

    def _stop_workers(self) -> None:
        for worker in self._crew.values():
            worker.child.signal(signal.SIGTERM)
        patience = Deadline(GRACE)
        for worker in self._crew.values():
            if not worker.child.join(patience.left()):
                worker.child.signal(signal.SIGKILL)
                worker.child.join(None)
            self.recorder.worker_ended(worker.pid, "was stopped", True)
            self._unwatch(worker.outbox.fd)
            self._unwatch(worker.child.sentinel)
            worker.close()
        self._crew.clear()

    def _release(self) -> None:
        # Guarded: a child that is forked when this is half done would close, once more, what
        # has these numbers by then.
        with _fork.guard:
            self._selector.close()
            os.close(self._wake_reader)
            writer, self._wake_writer = self._wake_writer, -1
            os.close(writer)

    # a fork of this process

    def _before_fork(self) -> None:
        """Nothing to decide."""

    def _after_fork_in_parent(self) -> None:
        """Nothing to let go of."""

    def _after_fork_in_child(self) -> None:
        # Nothing of the pool lives here: its thread does not, its links have closed
        # themselves, and its workers belong to the parent.
        if self._wake_writer >= 0:
            self._release()


def _unpack_error(data: bytes, fds: list[int]) -> BaseException:
    """Return the error that a worker sent, or the one that this raised."""
    try:
        return _outcome.unpack_error(data, fds)
    except BaseException as error:  # noqa: BLE001  unpickling is user code
        return error
