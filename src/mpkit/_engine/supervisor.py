"""The one thread of a pool, and the processes that it runs.

The supervisor thread owns everything here: the schedule, the workers, the ledger of
tasks that are not settled. Other threads only append to what it is told, and wake it, or
take the `Shortcut` to a worker that is idle. It waits, in one poll, for that wake-up, for what
workers report, and for their deaths; turns these into events of the `Schedule`; and performs
the actions that the schedule decides on. It waits without a timeout unless a task has one, a
worker is leaving, or workers are spared while short tasks run.

No lock is shared between processes, so no dead one can hold any.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

from mpkit import _fork
from mpkit._engine.actions import Abandon, Lose, Retire, Send, Spawn, TakeBack
from mpkit._engine.crew import Worker
from mpkit._engine.dispatch import Dispatch
from mpkit._engine.intake import STOPPED, Intake
from mpkit._engine.ledger import Ledger
from mpkit._engine.mailbox import Mailbox
from mpkit._engine.roster import Roster, audience_of
from mpkit._engine.schedule import Schedule
from mpkit._engine.verdict import Verdict
from mpkit._engine.warden import Warden
from mpkit._reader import Forked
from mpkit._wait import Deadline
from mpkit._worker import wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mpkit._engine.actions import Action
    from mpkit._engine.settings import Settings
    from mpkit._reader import Reader
    from mpkit._task.task import Task
    from mpkit._watch.recorder import Recorder


class Supervisor:
    """Runs tasks on processes of its own. See the module's docstring for who owns what."""

    def __init__(self, settings: Settings, recorder: Recorder, reader: Reader | None) -> None:
        self._recorder = recorder
        hard_limit = settings.memory_hard_limit
        limits = [limit for limit in (settings.memory_limit, hard_limit) if limit is not None]
        self._memory_limit = min(limits, default=None)
        self._schedule = Schedule(settings.workers, settings.tasks_per_worker)
        forks = settings.context.get_start_method() == "fork"
        self._audience = audience_of(settings)
        self._roster = Roster(settings.workers, settings.context, settings.setup, self._audience)
        self._crew = self._roster.workers
        if self._audience is not None:
            self._audience.attend(self._task, self._roster.unwatch)
        self._ledger = Ledger(recorder)
        self._dispatch = Dispatch(self._crew, self._ledger, self._schedule)
        self._warden = Warden(
            self._crew,
            self._ledger,
            self._schedule,
            read_reports=self._read_reports,
            take_back=self._take_back,
            memory_hard_limit=hard_limit,
        )
        self._verdict = Verdict(self._ledger, self._schedule, recorder, forks=forks)
        self._thread: threading.Thread | None = None
        # Whether the supervisor has begun, or is not to begin any more.
        self._supervised = self._given_up = False
        #: What is to be called at the end of the round.
        self._later: dict[Callable[[], None], None] = {}
        self.pid = os.getpid()
        #: Whether this is its process still, and no child that was forked. (To ask the kernel
        #: each time takes as long as to make a task.)
        self.ours = True
        #: Whether it will take no more, of itself or because it failed.
        self.ends = False
        with _fork.guard:
            self._mailbox = Mailbox(self._refuse)
            _fork.know(self)
        self._intake = Intake(
            self._mailbox,
            self._crew,
            self._ledger,
            self._schedule,
            self._verdict,
            recorder,
            answers=self._memory_limit is None,
            settles=self._audience is None,
        )
        #: For callers, in any thread: see there.
        self.submit, self.submit_small = self._intake.submit, self._intake.submit_small
        self._roster.watch(self._mailbox.reader, self._mailbox.woke)
        # The first workers start here: a fork is safest while there are few threads.
        self._common = reader if isinstance(reader, Forked) else None
        try:
            self._act()
            self._common = None  # there may be more by the time when others are forked
            if self._audience is not None:
                self._audience.start()
            self._thread = threading.Thread(target=self._supervise, name="mpkit pool", daemon=True)
            self._thread.start()  # RuntimeError if there is no room for one
        except BaseException:
            self._give_up()
            raise

    def _give_up(self) -> None:
        """End what was begun. A Ctrl-C may have come when the supervisor had just started."""
        with self._mailbox.lock:
            self._given_up = not self._supervised
        if self._given_up:
            self._stop_workers()
            self.join_listener(None)
            self._release()
            self._roster.close()
        else:
            self.terminate()
            self.join(None)

    # called by any thread

    def close(self) -> None:
        """No more calls will come: have the workers leave when all are done."""
        self.tell(self._schedule.close)

    def terminate(self) -> None:
        """Cancel what waits, and kill the workers. Does not wait."""
        self._intake.shortcut.close()
        self.tell(self._terminate)

    def join(self, timeout: float | None) -> bool:
        """Wait until the workers have left, every task is settled and all records are handled."""
        deadline = Deadline(timeout)
        return self._mailbox.over.wait(timeout) and self.join_listener(deadline.left())

    def join_listener(self, timeout: float | None) -> bool:
        """Wait until all that workers have logged is handled; tell whether it is."""
        return self._audience is None or self._audience.join(timeout)

    def handles_records(self) -> bool:
        """Tell whether the calling thread is the one that handles what workers have logged."""
        return self._audience is not None and self._audience.is_own_thread()

    def recall(self, task: Task[Any]) -> bool:
        """Take back a task from the inbox of its worker; tell whether it was in there."""
        return self._intake.recall(task, self._take_back)

    def cancel_waiting(self) -> None:
        """Cancel the tasks with which no worker has begun."""
        self.tell(self._ledger.cancel_waiting)

    def cancelled(self, task: Task[Any]) -> None:
        """End the pause of a task that was to be tried again."""
        self.tell(lambda: self._ledger.wake(task.number))

    def kill(self, task: Task[Any]) -> None:
        """End a task that runs, by killing its worker."""
        self.tell(lambda: self._warden.kill(task.number))

    def is_own_thread(self) -> bool:
        """Tell whether the calling thread is the supervisor."""
        # Not by its number, which is another thread's when it has ended.
        return threading.current_thread() is self._thread

    def later(self, call: Callable[[], None]) -> None:
        """Have this called, once, when what workers have reported is taken in.

        At once, if it is not the supervisor that asks. It must not raise.
        """
        if self.is_own_thread():
            self._later[call] = None
        else:
            call()

    def tell(self, message: Callable[[], None]) -> None:
        """Have the supervisor call this, soon."""
        self._mailbox.tell(message)

    def _refuse(self) -> None:
        """Settle what was submitted when it was too late. Holds the lock of the mailbox."""
        self._hear()
        self._ledger.settle_all(STOPPED)

    # the supervisor thread

    def _supervise(self) -> None:
        with self._mailbox.lock:
            self._supervised = not self._given_up
        if self._given_up:
            return
        try:
            while not self._schedule.over:
                # While so many tasks wait there is nobody who could be sent others.
                self._mailbox.patient = self._schedule.backlog
                when = self._next_round()
                for number in self._roster.wait(when):
                    self._read_reports(number, listen=False)
                self._hear()
                if when is not None:
                    self._warden.make_rounds(self._retire)
                    self._verdict.try_again()
                self._act()
                self._intake.offer()
                self._call_later()
        finally:
            # Reached by an error only if mpkit has a bug: then nobody must wait for ever.
            self.ends = True
            self._stop_workers()
            self._mailbox.end(self._recorder.close)  # whoever joins finds its pictures written
            self._call_later()
            self._release()  # nobody wakes us any more
            self._roster.close()

    def _next_round(self) -> float | None:
        """Return the time (of `time.monotonic`) at which there is something to do anyway."""
        # First, as a moment begins with that.
        times = self._warden.next_round(), self._verdict.next_try()
        if len(self._mailbox) and not self._mailbox.patient:
            return 0.0  # that came while it was patient
        return min((when for when in times if when is not None), default=None)

    def _hear(self) -> None:
        """Take in what other threads have submitted and told."""
        self._intake.take_in()
        for message in self._mailbox.messages():
            message()

    def _call_later(self) -> None:
        while self._later:
            self._later.popitem()[0]()

    def _take_back(self, number: int) -> None:
        """Put what a worker has not taken where others can have it."""
        worker = self._crew.get(number)
        if worker is not None:
            tasks = worker.take_back()
            self._intake.take_in()  # what came back may have been sent by a caller
            self._dispatch.returned(number, tasks)

    def _retire(self, number: int) -> None:
        self._perform(self._schedule.retire(number))

    def _terminate(self) -> None:
        self._intake.stopped = True
        self._stop_workers()
        self._ledger.settle_all(STOPPED)
        self._schedule.stop()

    # what workers say

    def _read_reports(self, number: int, *, listen: bool = True) -> None:
        """Take in what a worker has reported."""
        worker = self._crew.get(number)
        if worker is None:  # it ended in the same round
            return
        had_hung_up = worker.hung_up
        for report, fds in worker.reports(listen=listen):
            match report:
                case list() if self._done(number, worker, report, fds):
                    self._warden.strike(number)  # it has the next one to run now
                case wire.Declined(packet, place):
                    if tasks := worker.inbox.declined(packet, place):
                        self._dispatch.returned(number, tasks)
                        self._warden.strike(number)  # nor did it run that one
                case wire.Ready() if not self._schedule.has_started(number):
                    self._schedule.started(number)
                case wire.InitFailed(error) if not self._schedule.has_started(number):
                    self._verdict.init_failed(error, fds)
                case wire.FinalizerFailed(error) if worker.retiring:
                    self._verdict.finalizer_failed(worker.pid, error, fds)
                case _:  # it looks like a report, and makes no sense
                    worker.disbelieve()
        if worker.hung_up and not had_hung_up:  # its death, which we watch, will tell us more
            self._roster.unwatch(worker.outbox.fd)
            self._warden.hung_up(number)

    def _done(self, number: int, worker: Worker, dones: list[wire.Done], fds: list[int]) -> bool:
        """Take in that a worker has done tasks; False if it cannot have."""
        tasks = [done[0] for done in dones]
        seconds = sum([done[2] - done[1] for done in dones]) / len(dones)
        finished = self._schedule.finished
        count = finished(number, tasks, seconds)
        if count < len(dones):
            self._intake.take_in()  # some caller has sent them
            count += finished(number, tasks[count:], seconds)
        if count < len(dones):
            self._take_back(number)  # some thread has taken back what was before them
            count += finished(number, tasks[count:], seconds)
        worker.inbox.reported(tasks[:count])
        self._settle(number, worker, dones[:count], fds)
        return count == len(dones)

    def _settle(self, number: int, worker: Worker, dones: list[wire.Done], fds: list[int]) -> None:
        if self._audience is not None and worker.ear is not None:
            self._audience.hear_of(worker.ear, {done[0] for done in dones})
        limit = self._memory_limit
        if limit is not None and any(done[3] > limit for done in dones):
            self._retire(number)
        self._verdict.reported(worker.pid, dones, fds)

    def _ended(self, number: int) -> None:
        """A worker's process has ended: take in its last words, and what it left unread."""
        worker = self._crew[number]
        self._intake.shortcut.withdraw(number)
        self._intake.take_in()
        worker.reap()
        while worker.has_reports():
            self._read_reports(number)
        self._dispatch.returned(number, worker.take_back())
        if not self._schedule.has_started(number):
            self._verdict.ended_before_it_started(worker)
        self._hear_last_words(number, worker)
        for task in self._schedule.died(number):
            self._ledger.came_back(task)
        self._recorder.worker_ended(worker.pid, worker.ended, worker.retiring)
        # The errors of what it ran name its process, so they are made before it is gone.
        self._act()
        self._roster.remove(number)

    def _hear_last_words(self, number: int, worker: Worker) -> None:
        """Take in what a dead worker has said beside its reports."""
        if self._audience is not None and worker.ear is not None:
            self._audience.last_words(worker.ear, self._schedule.running(number))

    def _task(self, number: int) -> Task[Any] | None:
        """Return a task that is not settled."""
        entry = self._ledger.get(number)
        if entry is None:
            self._intake.take_in()  # some caller has sent it
            entry = self._ledger.get(number)
        return None if entry is None else entry.task

    # what the schedule decides

    def _act(self) -> None:
        self._perform(self._schedule.decide())

    def _perform(self, actions: Iterable[Action]) -> None:
        started: list[int] = []
        try:
            for action in actions:
                if isinstance(action, Spawn):
                    self._spawn(started)
                else:
                    self._attend(started)
                    self._perform_one(action)
        finally:
            self._attend(started)

    def _perform_one(self, action: Send | TakeBack | Retire | Lose | Abandon) -> None:
        match action:
            case Send(number, tasks):
                if self._intake.shortcut.withdraw(number):
                    self._dispatch.send(number, tasks)
                else:  # they are sent when it reports what it was sent meanwhile
                    self._intake.take_in()  # or it would report that to its caller only
                    self._dispatch.returned(number, tasks)
            case TakeBack(number):
                self._take_back(number)
            case Retire(number):
                idle = self._intake.shortcut.withdraw(number)
                self._recorder.worker_leaves(self._crew[number].pid)
                self._crew[number].retire(idle=idle and self._schedule.running(number) is None)
                self._warden.told_to_leave()
            case Lose(task, number):
                self._verdict.lost(task, self._crew[number])
            case Abandon(task, attempts):
                self._verdict.abandoned(task, attempts)

    def _spawn(self, started: list[int]) -> None:
        try:
            number = self._roster.start(self._common)
        except (OSError, MemoryError, EOFError) as error:  # the last: the fork server had none
            self._verdict.no_process(error)
        except BaseException as error:  # pickling the initializer is user code
            if not self.is_own_thread():
                raise  # to who makes the pool
            self._verdict.init_cannot_travel(error)
        else:
            started.append(number)
            self._schedule.spawned(number)

    def _attend(self, started: list[int]) -> None:
        """Watch workers that were started: when all are that are to be.

        Each page that is written to between two forks is copied once more for the second.
        """
        for number in started:
            worker = self._roster.attend(number, self._read_reports, self._ended)
            self._recorder.worker_started(worker.pid)
        started.clear()

    # the end

    def _stop_workers(self) -> None:
        for worker in self._crew.values():
            self._recorder.worker_leaves(worker.pid)
        for number, worker in self._roster.stop():
            self._hear_last_words(number, worker)
            self._recorder.worker_ended(worker.pid, "was stopped", True)
            running = self._schedule.running(number)
            if running is not None and (entry := self._ledger.get(running)) is not None:
                self._recorder.task_lost(worker.pid, entry.task, entry.size)
        if self._audience is not None:
            self._audience.end()

    def _release(self) -> None:
        # Guarded: a child that is forked when this is half done would close, once more, what
        # has these numbers by then.
        with _fork.guard:
            self._roster.release()
            self._mailbox.close()

    # a fork of this process

    def _before_fork(self) -> None:
        """Nothing to decide."""

    def _after_fork_in_parent(self) -> None:
        """Nothing to let go of."""

    def _after_fork_in_child(self) -> None:
        self.ours = False
        self._recorder.after_fork_in_child()
        # Nothing of the pool lives here: its thread does not, its links have closed
        # themselves, and its workers belong to the parent.
        if not self._mailbox.closed:
            self._release()
