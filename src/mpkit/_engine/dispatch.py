"""How tasks get to a worker, and what happens to those that do not.

Small ones travel several to a packet, those with descriptors alone. What the system has
no room for comes back to the schedule, and is tried again when something has ended.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpkit._engine.ledger import packets

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mpkit._engine.crew import Worker
    from mpkit._engine.ledger import Entry, Ledger
    from mpkit._engine.schedule import Schedule

#: How many tasks a worker is sent at a time that travel with descriptors, of which we
#: hold copies until they are done. One to run, and one to begin with after that.
MOST_BULKY = 2

_NO_FDS: Sequence[int] = ()


class Dispatch:
    """Sends the tasks of a ledger to a crew. Used by the supervisor thread only."""

    def __init__(self, crew: dict[int, Worker], ledger: Ledger, schedule: Schedule) -> None:
        self._crew = crew
        self._ledger = ledger
        self._schedule = schedule

    def send(self, number: int, tasks: list[int]) -> None:
        """Send tasks to a worker, several to a packet where they are small."""
        known = self._ledger.entries
        entries = [known[task] for task in tasks]
        bulky = [place for place, entry in enumerate(entries) if entry.parcel is not None]
        most = MOST_BULKY - len(self._crew[number].inbox.bulky)
        if len(bulky) > most:
            self.returned(number, tasks[bulky[most] :])
            del entries[bulky[most] :], bulky[most:]
        first = 0
        for place in bulky:
            self._send_small(number, entries[first:place])
            first = place + 1
            if not self._send_bulky(number, entries[place]):
                self.returned(number, tasks[first : len(entries)])
                return
        self._send_small(number, entries[first:])

    def _begin(self, number: int, entries: list[Entry]) -> list[Entry]:
        """Return those that were not cancelled, and cannot be any more."""
        begun, cancelled = self._ledger.begin(entries)
        for task in cancelled:
            self._schedule.withdrawn(number, task)
        return begun

    def _send_small(self, number: int, entries: list[Entry]) -> None:
        for packet in packets(self._begin(number, entries)):
            self._flush(number, packet)

    def _send_bulky(self, number: int, entry: Entry) -> bool:
        """Send a task with descriptors, whose they are is clear only if it is alone.

        False if there are none, or there is no memory.
        """
        parcel = entry.parcel
        assert parcel is not None  # or it would be small
        if not self._begin(number, [entry]):
            return True
        try:
            data, fds = parcel.seal(entry.head)
        except OSError as error:
            self._cannot_send(number, entry.task.number, error)
            return False
        self._flush(number, [entry], data, fds)
        return True

    def _flush(
        self,
        number: int,
        entries: Sequence[Entry],
        sealed: bytes = b"",
        fds: Sequence[int] = _NO_FDS,
    ) -> None:
        """Send these, which are one packet."""
        loads = [(entry.task.number, sealed or entry.head) for entry in entries]
        worker = self._crew[number]
        try:
            sent = worker.inbox.send(loads, fds, entries[0].common)
        except OSError as error:
            ((task, _),) = loads  # with descriptors it is alone
            self._cannot_send(number, task, error)
            return
        if sent:
            self._ledger.sent(entries, number, worker.pid)
        else:
            self.returned(number, [task for task, _ in loads])

    def _cannot_send(self, number: int, task: int, error: OSError) -> None:
        """There are no descriptors, or there is no memory, to send a task.

        When another one ends there will be more. If there is none to end, this is its error.
        """
        if self._ledger.in_flight:
            self.returned(number, [task])
        else:
            self._schedule.withdrawn(number, task)
            self._ledger.settle(self._ledger[task], None, error)

    def returned(self, number: int, tasks: Sequence[int]) -> None:
        """These tasks were not taken by a worker."""
        for task in tasks:
            self._ledger.came_back(task)
        self._schedule.returned(number, tasks)
