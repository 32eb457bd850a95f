"""The pool's processes, and the one thread that runs them.

The supervisor thread owns everything here: the schedule, the workers, the tasks that
are not settled. Other threads only append to its inbox and wake it. It waits, in one
poll and without a timeout unless a task has one, for that wake-up, for what workers
report, and for their deaths; turns these into events of the `Schedule`; and performs
the actions that the schedule decides on.

Each worker has two links of its own. The parent keeps a copy of the reading end of the
worker's *inbox*: a packet is either still in it, and can be taken back at once, or the
worker has it. No lock is shared between processes, so no dead one can hold any.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import selectors
import signal
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from mpkit import _fork, _outcome, _parcel, _platform, _wait
from mpkit._errors import PoolClosed, TaskTimeout, WorkerDied, WorkerInitError
from mpkit._link import Link, LinkDown, discard
from mpkit._pool import wire, worker
from mpkit._pool.schedule import Abandon, Lose, Retire, Schedule, Send, Spawn, TakeBack
from mpkit._pool.stats import Recorder
from mpkit._pool.task import report_callback
from mpkit._process import GRACE, Child
from mpkit._wait import Deadline

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.context import BaseContext

    from mpkit._parcel import Parcel
    from mpkit._pool.options import Options
    from mpkit._pool.schedule import Action
    from mpkit._pool.task import Task
    from mpkit._process import Call

#: How many reports of one worker to read before looking at the others (arbitrary).
REPORTS_AT_A_TIME = 64

NOW = Deadline(0)


class _Pending:
    """A task that is not settled, and what is needed to run it, perhaps again."""

    __slots__ = ("deadline", "parcel", "retries", "task", "timed_out", "worker")

    def __init__(self, task: Task[Any], parcel: Parcel) -> None:
        self.task = task
        self.parcel = parcel
        self.retries = task.options.retries
        self.worker: int | None = None
        self.timed_out = False
        self.deadline: float | None = None


class _Worker:
    """A worker's process and our ends of its links."""

    def __init__(self, inbox: Link, inbox_reader: Link, outbox: Link, child: Child) -> None:
        self.inbox = inbox
        self.inbox_reader = inbox_reader
        self.outbox = outbox
        self.child = child
        self.retiring = False

    def close(self) -> None:
        for link in (self.inbox, self.inbox_reader, self.outbox):
            link.close()


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
        self._context = context
        self._init = init
        self._memory_limit = memory_limit
        self._schedule = Schedule(workers, tasks_per_worker)
        self._running: dict[int, _Worker] = {}
        self._numbers = itertools.count()
        self._pending: dict[int, _Pending] = {}
        #: (when, task) of those with a timeout that were sent; a heap.
        self._deadlines: list[tuple[float, int]] = []
        self._init_error: BaseException | None = None
        self._closed_because: str | None = None
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
            os.set_blocking(self._wake_reader, False)
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

    def submit(self, task: Task[Any], call: Call) -> None:
        """Pack the call here, in the caller's thread, and hand it to the supervisor.

        Raises NotPicklable, naming what cannot travel, and `PoolClosed`.
        """
        self._check_open()
        parcel = _parcel.pack((call.fn, call.args, call.kwargs), f"{call.what}(...)")
        parcel.own()
        parcel.depart(f"moved to the worker that runs {task.name}")
        pending = _Pending(task, parcel)
        self._tell(lambda: self._submitted(pending))

    def close(self) -> None:
        """Take no more tasks; the workers leave when all are done."""
        if self._closed_because is None:
            self._closed_because = "it was closed"
            self._tell(self._schedule.close)

    def terminate(self) -> None:
        """Take no more tasks, cancel those that wait, kill the workers. Does not wait."""
        self._closed_because = "it was terminated"
        self._tell(self._terminate)

    def join(self, timeout: float | None) -> bool:
        """Wait until the workers have left and every task is settled."""
        if self.is_own_thread():
            raise RuntimeError("a callback of a pool cannot wait for the end of the pool")
        return self._over.wait(timeout)

    def cancel_waiting(self) -> None:
        """Cancel the tasks that were not sent to a worker yet."""
        for pending in list(self._pending.values()):
            pending.task.cancel()

    def is_own_thread(self) -> bool:
        """Tell whether the calling thread is one that `join` would wait for."""
        return threading.current_thread() is self._thread

    def _check_open(self) -> None:
        if self._pid != os.getpid():
            why = f"it belongs to process {self._pid}; make one in this process"
            raise PoolClosed("the pool", why)
        if self._closed_because is not None:
            raise PoolClosed("the pool", self._closed_because)

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
        self._settle_all("was stopped with its pool")

    # the supervisor thread

    def _supervise(self) -> None:
        try:
            while not self._schedule.over:
                for key, _ in self._selector.select(self._next_deadline()):
                    key.data()
                while self._inbox:
                    self._inbox.popleft()()
                self._expire()
                self._act()
        finally:
            # Reached by an error only if mpkit has a bug: then nobody must wait for ever.
            self._closed_because = self._closed_because or "its supervisor failed"
            self._stop_workers()
            with self._ending:
                self._over.set()
                self._refuse_the_rest()
                self._release()
            self.recorder.close()

    def _woke(self) -> None:
        os.read(self._wake_reader, 512)
        self._woken = False

    def _submitted(self, pending: _Pending) -> None:
        task = pending.task
        self.recorder.submitted += 1
        self._pending[task.number] = pending
        options = task.options
        alone = options.timeout is not None
        self._schedule.submitted(task.number, priority=options.priority, alone=alone)

    def _terminate(self) -> None:
        self._stop_workers()
        self._settle_all("was stopped with its pool")
        self._schedule = Schedule(0)
        self._schedule.close()

    # what workers say

    def _read_reports(self, number: int) -> None:
        """Take in what a worker has reported."""
        if number not in self._running:  # it ended in the same round
            return
        outbox = self._running[number].outbox
        for _ in range(REPORTS_AT_A_TIME):
            try:
                packet = outbox.receive(NOW)
            except LinkDown:
                # It closed its end. Its death, which we watch, will tell us more.
                self._selector.unregister(outbox.fd)
                outbox.close()
                return
            if packet is None:
                return
            self._reported(number, *packet)

    def _reported(self, number: int, data: bytes, fds: list[int]) -> None:
        message = wire.decode_for_parent(data)
        if isinstance(message, wire.Done):
            self._done(number, message, fds)
        elif isinstance(message, wire.Ready):
            self._schedule.started(number)
        else:
            self._init_error = _outcome.unpack_error(message.error, fds)

    def _done(self, number: int, done: wire.Done, fds: list[int]) -> None:
        pid = self._running[number].child.pid
        pending = self._pending[done.task]
        name = pending.task.name
        failed = done.outcome[:1] == _outcome.FAILED
        self._schedule.finished(number, done.task, done.ended - done.began)
        self.recorder.task_ended(pid, name, done.began, done.ended, failed)
        if self._memory_limit is not None and done.resident > self._memory_limit:
            self._perform_all(self._schedule.retire(number))
        error: BaseException | None = None
        value: Any = None
        if failed:
            error = _outcome.unpack_error(done.outcome[1:], fds)
        else:
            try:
                value = _outcome.unpack_result(name, done.outcome[1:], fds)
            except BaseException as raised:  # noqa: BLE001  unpickling is user code
                error = raised
        if error is None:
            self._settle(done.task, value, None)
        else:
            self._failed(done.task, error)

    def _worker_ended(self, number: int) -> None:
        """A worker's process has ended: take in its last words, and what it left unread."""
        ended = self._running[number]
        ended.child.join(None)
        while not ended.outbox.closed and _wait.poll([ended.outbox.fd], 0):
            self._read_reports(number)
        self._take_back(number)
        reason = _platform.exit_reason(ended.child.exitcode)
        self.recorder.worker_ended(ended.child.pid, reason, ended.retiring)
        if not ended.outbox.closed:
            self._selector.unregister(ended.outbox.fd)
        self._selector.unregister(ended.child.sentinel)
        self._schedule.died(number)
        ended.close()
        # Its tasks' errors name the process, so it is forgotten after they are settled.
        self._act()
        del self._running[number]

    def _take_back(self, number: int) -> None:
        """Read what a worker has not, from our copy of its inbox."""
        returned: list[int] = []
        while True:
            try:
                packet = self._running[number].inbox_reader.receive(NOW)
            except LinkDown:
                break
            if packet is None:
                break
            data, fds = packet
            discard(fds)
            message = wire.decode_for_worker(data)
            if isinstance(message, wire.Run):
                returned += [load.task for load in message.loads]
        self._schedule.returned(number, returned)

    # what the schedule decides

    def _act(self) -> None:
        self._perform_all(self._schedule.decide())

    def _perform_all(self, actions: Any) -> None:
        for action in actions:
            self._perform(action)

    def _perform(self, action: Action) -> None:
        match action:
            case Send(number, tasks):
                self._send(number, tasks)
            case Spawn():
                self._spawn()
            case TakeBack(number):
                self._take_back(number)
            case Retire(number):
                self._running[number].retiring = True
                with contextlib.suppress(LinkDown):
                    self._running[number].inbox.send(wire.encode_leave(), [], NOW)
            case Lose(task, number):
                self._lost(task, number)
            case Abandon(task):
                why = str(self._init_error) if self._init_error else "they ended at once"
                error = WorkerInitError(3, why)
                error.__cause__ = self._init_error
                self._settle(task, None, error)

    def _spawn(self) -> None:
        inbox, inbox_reader = Link.pair()
        outbox, outbox_writer = Link.pair()
        kept_reader = Link.adopt(os.dup(inbox_reader.fd))
        args = (inbox_reader, outbox_writer, self._init, self._memory_limit is not None)
        try:
            child = Child(worker.main, args, self._context)
        except OSError:
            for link in (inbox, kept_reader, outbox):
                link.close()
            self._schedule.spawn_failed()
            return
        finally:
            inbox_reader.close()
            outbox_writer.close()
        number = next(self._numbers)
        self._running[number] = _Worker(inbox, kept_reader, outbox, child)
        self._selector.register(outbox.fd, selectors.EVENT_READ, lambda: self._read_reports(number))
        self._selector.register(
            child.sentinel, selectors.EVENT_READ, lambda: self._worker_ended(number)
        )
        self.recorder.worker_started(child.pid)
        self._schedule.spawned(number)

    def _send(self, number: int, tasks: list[int]) -> None:
        """Send tasks to a worker, several to a packet where they are small."""
        loads: list[wire.Load] = []
        room = wire.ROOM
        for task in tasks:
            pending = self._pending[task]
            if not pending.task.running() and not pending.task.set_running_or_notify_cancel():
                self._schedule.withdrawn(number, task)
                self._forget(task)
                continue
            parcel = pending.parcel
            data, fds = parcel.seal()
            if fds or len(data) + wire.PER_LOAD > room:
                self._flush(number, loads)
                loads, room = [], wire.ROOM
            loads.append(wire.Load(task, data))
            room -= len(data) + wire.PER_LOAD
            if fds:
                self._flush(number, loads, fds)
                loads, room = [], wire.ROOM
            self._start_clock(pending, number)
        self._flush(number, loads)

    def _flush(self, number: int, loads: list[wire.Load], fds: list[int] | None = None) -> None:
        if not loads:
            return
        sent = False
        with contextlib.suppress(LinkDown):  # its death will be told by the sentinel
            sent = self._running[number].inbox.send(wire.encode_run(loads), fds or [], NOW)
        if not sent:
            self._schedule.returned(number, [load.task for load in loads])

    def _start_clock(self, pending: _Pending, number: int) -> None:
        pending.worker = number
        timeout = pending.task.options.timeout
        if timeout is not None:
            pending.deadline = time.monotonic() + timeout
            heapq.heappush(self._deadlines, (pending.deadline, pending.task.number))

    # how tasks end

    def _lost(self, task: int, number: int) -> None:
        pending = self._pending[task]
        child = self._running[number].child
        self.recorder.lost += 1
        error: BaseException
        if pending.timed_out:
            assert pending.task.options.timeout is not None
            error = TaskTimeout(pending.task.name, pending.task.options.timeout)
        else:
            reason = _platform.exit_reason(child.exitcode)
            error = WorkerDied(pending.task.name, child.pid, child.exitcode, reason)
        self._failed(task, error, crashed=True)

    def _failed(self, task: int, error: BaseException, *, crashed: bool = False) -> None:
        """Run the task again, or fail it."""
        pending = self._pending[task]
        options = pending.task.options
        if pending.retries > 0 and (crashed or isinstance(error, options.retry_on)):
            pending.retries -= 1
            pending.timed_out = False
            pending.deadline = None
            alone = options.timeout is not None
            self._schedule.submitted(task, priority=options.priority, alone=alone)
        else:
            self._settle(task, None, error)

    def _settle(self, task: int, value: Any, error: BaseException | None) -> None:
        pending = self._forget(task)
        future = pending.task
        if not future.running() and not future.set_running_or_notify_cancel():
            return
        # Callbacks run in here, and an exit that one asks for is not the supervisor's.
        try:
            if error is None:
                future.set_result(value)
            else:
                future.set_exception(error)
        except BaseException as raised:  # noqa: BLE001
            report_callback(future.name, raised)

    def _forget(self, task: int) -> _Pending:
        pending = self._pending.pop(task)
        pending.parcel.close()
        return pending

    def _settle_all(self, reason: str) -> None:
        """Cancel what waits, and fail what ran."""
        for task, pending in list(self._pending.items()):
            pending.task.cancel()
            worker = self._running.get(pending.worker) if pending.worker is not None else None
            pid = worker.child.pid if worker else None
            self._settle(task, None, WorkerDied(pending.task.name, pid, None, reason))

    # time

    def _next_deadline(self) -> float | None:
        if not self._deadlines:
            return None
        return max(0.0, self._deadlines[0][0] - time.monotonic())

    def _expire(self) -> None:
        """Kill the workers of tasks that have run for too long."""
        while self._deadlines and self._deadlines[0][0] <= time.monotonic():
            deadline, task = heapq.heappop(self._deadlines)
            pending = self._pending.get(task)
            if pending is not None and pending.deadline == deadline and pending.worker is not None:
                pending.timed_out = True
                self._running[pending.worker].child.signal(signal.SIGKILL)

    # the end

    def _stop_workers(self) -> None:
        for running in self._running.values():
            running.child.signal(signal.SIGTERM)
        patience = Deadline(GRACE)
        for running in self._running.values():
            if not running.child.join(patience.left()):
                running.child.signal(signal.SIGKILL)
                running.child.join(None)
            self.recorder.worker_ended(running.child.pid, "was stopped", True)
            for fd in (running.outbox.fd, running.child.sentinel):
                with contextlib.suppress(KeyError, ValueError):
                    self._selector.unregister(fd)
            running.close()
        self._running.clear()

    def _release(self) -> None:
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
            self._selector.close()
            os.close(self._wake_reader)
            os.close(self._wake_writer)
            self._wake_writer = -1
