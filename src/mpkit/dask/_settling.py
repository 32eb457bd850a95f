"""`Settling`: what becomes of the tasks of a pool on a cluster, by what is heard of their packets."""

from __future__ import annotations

import contextlib
import pickle
import time
from typing import TYPE_CHECKING, Any, Final

from mpkit import _outcome
from mpkit._engine.backend import tries_again
from mpkit._errors import PoolClosed, TaskTimeout, WorkerDied, WorkerInitError
from mpkit._task.options import pause_before
from mpkit.dask import _packet

if TYPE_CHECKING:
    from collections.abc import Generator

    from mpkit.dask._cluster import Cluster, Ended
    from mpkit.dask._lanes import Lanes
    from mpkit.dask._ledger import Entry, Ledger, Sent

#: How often a call is sent that no worker can begin with, as they die of it or cannot read it.
_MOST_IN_VAIN: Final = 5
#: Seconds to send nothing, after what was sent could not be taken. (A worker that has just died
#: is one of the cluster's until that is noticed.)
_REST: Final = 0.5
#: How many packets that were taken back to leave with Dask. (Arbitrary: those before have long been
#: refused, or wait behind a call that takes so long.)
_MOST_LEAVING: Final = 16


class Settling:
    """Settles tasks. The engine's thread uses it, and no other."""

    def __init__(self, ledger: Ledger, cluster: Cluster, lanes: Lanes) -> None:
        self._ledger = ledger
        self._cluster = cluster
        self._lanes = lanes
        self._recorder = lanes.recorder
        #: Packets that were taken back, while Dask may be about to have them refused: the latest.
        self._leaving: dict[int, Sent] = {}
        #: Nothing is tried again, and nothing waits any more.
        self._ends = False

    @contextlib.contextmanager
    def holding(self, packet: Sent) -> Generator[None]:
        """Have nobody conclude from a packet that is not run that it was lost. Any thread may.

        It may be that it was just taken back; and who has done that says so afterwards.
        """
        self._ledger.hold(packet, 1)
        try:
            yield
        finally:
            self._ledger.hold(packet, -1)

    # what is heard

    def told(self, event: dict[str, Any]) -> None:
        """Take in an event of `Claims`."""
        if "gone" in event:
            self._gone(event["gone"], event["lost"])
        for number in event.get("back", ()):
            behind = self._ledger.packet(number)
            if behind is not None:
                self._ledger.give_back(behind, 0, event["workers"])
                self._see_leave(behind)
        packet = self._ledger.packet(event.get("number", -1))
        if packet is None:
            return
        packet.lane = self._lanes.lane(event["worker"], event["pid"], event["thread"])
        if "rest" in event:
            self._ledger.give_back(packet, event["rest"])
        self._settle_all(packet, pickle.loads(event["outcomes"]))
        if "late" in event:
            self._late(packet, event["late"], event["pid"], ends=event["ends"])

    def ended(self, ended: Ended) -> BaseException | None:
        """Dask has done with a packet. Returns an error, if there is no scheduler any more."""
        leaving = self._leaving.pop(ended.number, None)
        if leaving is not None:
            self._let_go(leaving)
        packet = self._ledger.packet(ended.number)
        if packet is None:  # it was taken back, or lost
            return None
        if packet.held:
            packet.deferred = ended
            return None
        error = ended.error
        if error is None:
            self._settle_all(packet, ended.outcomes or [])
            # What is left was not reported by the one that ran it: Dask has then run it again, in
            # vain, as it is claimed.
            self._lose(packet, "the worker that had begun with it was lost")
        else:
            return self._went_wrong(packet, error)
        return None

    def _went_wrong(self, packet: Sent, error: BaseException) -> BaseException | None:
        """Dask could not run a packet, or not to its end."""
        try:
            withdrawn = self._cluster.withdraw(packet.number)
        except Exception as failure:  # noqa: BLE001  in whatever way the connection fails
            failure.__cause__ = error
            return failure
        if withdrawn is None:
            return error
        if not withdrawn:
            self._lose(packet, f"what ran it has failed: {error}", cause=error)
            return None
        # It was not begun. What it needs may have been lost with a worker; or workers die of it.
        self._fail_what_is_in_vain(packet, error)
        self._ledger.give_back(packet, 0)
        self.drop(packet)
        return None

    def not_sent(self, packet: Sent, error: Exception) -> BaseException | None:
        """As `ended`, of a packet that Dask has not taken: for want of a worker for what is large."""
        packet.larges.clear()
        failure = self._went_wrong(packet, error)
        if failure is None:
            self._ledger.rest(_REST)
        return failure

    def _fail_what_is_in_vain(self, packet: Sent, error: BaseException) -> None:
        for place, entry in list(packet.open.items()):
            entry.in_vain += 1
            why = self._why_in_vain(entry, error)
            if why is not None and self._ledger.take(packet, place) is not None:
                why.__cause__ = error
                self._failed(entry, why, crashed=True)

    def _why_in_vain(self, entry: Entry, error: BaseException) -> BaseException | None:
        """Return how a call fails that cannot be begun; None if it is to be sent again."""
        if isinstance(error, ModuleNotFoundError) and (error.name or "").startswith("mpkit"):
            why = f"the workers cannot import {error.name}: install mpkit on all of them"
            return WorkerInitError(entry.in_vain, why)
        if entry.in_vain >= _MOST_IN_VAIN:
            why = f"{entry.in_vain} times no worker could begin with it: {error}"
            return WorkerDied(entry.task.name, None, None, why)
        return None

    def _gone(self, worker: str, lost: list[tuple[int, int]]) -> None:
        """A worker is gone, and had claimed these packets."""
        self._lanes.gone(worker)
        for number, pid in lost:
            packet = self._ledger.packet(number)
            if packet is not None:
                self._lose(packet, f"of the Dask worker at {worker} was lost", pid)

    def _lose(
        self, packet: Sent, why: str, pid: int | None = None, cause: BaseException | None = None
    ) -> None:
        """What a packet still has is lost."""
        entries = self._ledger.take_all(packet)
        self.drop(packet)
        for entry in entries:
            error = WorkerDied(entry.task.name, pid, None, why)
            error.__cause__ = cause
            self._recorder.task_lost(0, entry.task)
            self._failed(entry, error, crashed=True)

    def drop(self, packet: Sent) -> None:
        """Have Dask forget a packet, if it has not."""
        if self._ledger.drop(packet):
            self._let_go(packet)

    def _let_go(self, packet: Sent) -> None:
        self._cluster.let_go(packet.larges)
        if packet.future is not None:
            packet.future.release()

    @property
    def waits_for_refusals(self) -> bool:
        """Whether there are packets that were taken back, and of which Dask has not said more."""
        return bool(self._leaving)

    def _see_leave(self, packet: Sent) -> None:
        """As `drop`, of a packet with which a worker may be about to begin."""
        # Dask would have that worker forget it, and not say when it has done so.
        if self._ledger.drop(packet):
            self._leaving[packet.number] = packet
            if len(self._leaving) > _MOST_LEAVING:
                self._let_go(self._leaving.pop(next(iter(self._leaving))))

    # what becomes of tasks

    def _settle_all(self, packet: Sent, outcomes: list[_packet.Outcome]) -> None:
        """Settle the tasks of which it is known what became of them."""
        known = [(self._ledger.take(packet, outcome.place), outcome) for outcome in outcomes]
        ends = [(entry, outcome) for entry, outcome in known if entry is not None]
        if not ends:
            return
        # By our clock: that of the worker's machine is another one.
        began = time.monotonic() - sum(outcome.seconds for _, outcome in ends)
        sums: dict[str, tuple[int, float]] = {}
        spans: list[tuple[Any, float, float, bool]] = []
        for entry, outcome in ends:
            ended = began + outcome.seconds
            spans.append((entry.task, began, ended, outcome.kind == _outcome.FAILED))
            began = ended
            if not entry.alone:
                count, seconds = sums.get(entry.what, (0, 0.0))
                sums[entry.what] = count + 1, seconds + outcome.seconds
        self._ledger.ran((what, *of) for what, of in sums.items())
        self._recorder.tasks_ended(packet.lane, spans)
        for entry, outcome in ends:
            self._settle(entry, outcome)

    def _settle(self, entry: Entry, outcome: _packet.Outcome) -> None:
        task = entry.task
        value: Any = None
        error: BaseException | None = None
        try:
            buffers = [bytearray(part) for part in outcome.buffers]
            value = pickle.loads(outcome.stream, buffers=buffers)
        except BaseException as failure:  # noqa: BLE001  unpickling is user code
            failure.add_note(f"(raised here while the result of {task.name} was unpickled)")
            self._recorder.task_misread()
            usual = isinstance(failure, Exception)
            error = failure if usual else _outcome.raised(task.name, failure).error()
        else:
            if outcome.kind == _outcome.FAILED:
                error = value.error()
        if error is not None:
            self._failed(entry, error, crashed=False)
            return
        self._ledger.forget(entry)
        task.set_result(value)

    def _late(self, packet: Sent, place: int, pid: int, *, ends: bool) -> None:
        """A call has run for longer than its timeout."""
        packet.late = True
        entry = self._ledger.take(packet, place)
        if entry is None:
            return
        error = TaskTimeout(entry.task.name, entry.task.options.timeout or 0.0, pid)
        if not ends:
            error.add_note(
                f"(process {pid} has other threads, calls or data, or no nanny, and is not ended for "
                "this: its thread goes on with the call, and takes no other one until that returns)"
            )
        self._recorder.task_lost(packet.lane, entry.task)
        self._failed(entry, error, crashed=True)

    def _failed(self, entry: Entry, error: BaseException, *, crashed: bool) -> None:
        """A task has failed: try it again, or settle it."""
        if not self._ends and tries_again(entry.task, error, crashed=crashed):
            self._recorder.task_retried(None, entry.task.name)
            self._ledger.pause(entry, pause_before(entry.task.options, entry.task.attempts))
        else:
            self._fail(entry, error)

    def _fail(self, entry: Entry, error: BaseException) -> None:
        self._ledger.forget(entry)
        self._recorder.task_failed()
        entry.task.set_exception(error)

    # how it ends

    def end_all(self) -> None:
        """The pool is terminated: cancel what waits, and give up what runs."""
        self._ends = True
        running = self._close()
        for packet in self._ledger.packets():
            if running is None or packet.number in running:
                self._lose(packet, "its pool was terminated (on the cluster it goes on to its end)")
            else:
                self._ledger.give_back(packet, 0)
                self.drop(packet)
        for entry in self._ledger.take_waiting():
            entry.task.cancel()
            entry.task.set_running_or_notify_cancel()  # which tells those who wait for several
            self._ledger.forget(entry)
            self._recorder.task_cancelled()

    def fail_all(self, why: str, cause: BaseException) -> None:
        """There is no scheduler any more."""
        self._ends = True
        for packet in self._ledger.packets():
            self._lose(packet, f"the pool cannot hear of it: {why}", cause=cause)
        for entry in self._ledger.take_waiting():
            error = PoolClosed("the pool", why)
            error.__cause__ = cause
            if entry.task.set_running_or_notify_cancel():
                self._fail(entry, error)
            else:
                self._ledger.forget(entry)
                self._recorder.task_cancelled()

    def over(self) -> None:
        """All tasks are settled; there may be packets of which nobody wants to hear any more."""
        self._close()
        for packet in self._ledger.packets():
            self.drop(packet)
        for packet in self._leaving.values():
            self._let_go(packet)
        self._cluster.forget()

    def _close(self) -> set[int] | None:
        """Have the scheduler forget the pool; return what runs, or None if it cannot be asked."""
        try:
            return set(self._cluster.close())
        except Exception:  # noqa: BLE001  in whatever way: there is no scheduler any more
            return None
