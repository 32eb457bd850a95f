"""How tasks get to a worker, and what happens to those that do not.

Small ones travel several to a packet, those with descriptors alone. What the system has
no room for comes back to the schedule, and is tried again when something has ended.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpkit._worker import wire

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mpkit._engine.crew import Worker
    from mpkit._engine.ledger import Entry, Ledger
    from mpkit._engine.schedule import Schedule

#: How many tasks a worker is sent at a time that travel with descriptors, of which we
#: hold copies until they are done. One to run, and one to begin with after that.
MOST_BULKY = 2

_NO_FDS: Sequence[int] = ()


class _Packet:
    """Tasks that are about to be sent together, and the function that they have in ``common``."""

    def __init__(self, common: bytes) -> None:
        self.entries: list[Entry] = []
        self.loads: list[tuple[int, bytes]] = []
        self.common = common


class Dispatch:
    """Sends the tasks of a ledger to a crew. Used by the supervisor thread only."""

    def __init__(self, crew: dict[int, Worker], ledger: Ledger, schedule: Schedule) -> None:
        self._crew = crew
        self._ledger = ledger
        self._schedule = schedule

    def send(self, number: int, tasks: list[int]) -> None:
        """Send tasks to a worker, several to a packet where they are small."""
        packet, room = _Packet(b""), wire.ROOM
        for place, task in enumerate(tasks):
            entry = self._ledger.begin(task)
            if entry is None:
                self._schedule.withdrawn(number, task)
                continue
            data, fds, parcel = entry.head, _NO_FDS, entry.parcel
            if parcel is not None:
                if not parcel.plain and len(self._crew[number].inbox.bulky) >= MOST_BULKY:
                    self._flush(number, packet)
                    self.returned(number, tasks[place:])
                    return
                try:
                    data, fds = parcel.seal(data)
                except OSError as error:
                    self._flush(number, packet)
                    self._cannot_send(number, task, error)
                    self.returned(number, tasks[place + 1 :])
                    return
            size = len(data) + wire.PER_LOAD
            if fds or size > room or packet.common is not entry.common:
                self._flush(number, packet)
                packet = _Packet(entry.common)
                room = wire.ROOM - len(entry.common)
            packet.entries.append(entry)
            packet.loads.append((task, data))
            room -= size
            if fds:  # whose they are is clear only if it is alone
                self._flush(number, packet, fds)
                packet, room = _Packet(b""), wire.ROOM
        self._flush(number, packet)

    def _flush(self, number: int, packet: _Packet, fds: Sequence[int] = _NO_FDS) -> None:
        if not packet.loads:
            return
        worker = self._crew[number]
        try:
            sent = worker.inbox.send(packet.loads, fds, packet.common)
        except OSError as error:
            ((task, _),) = packet.loads  # with descriptors it is alone
            self._cannot_send(number, task, error)
            return
        if sent:
            self._ledger.sent(packet.entries, number, worker.pid)
        else:
            self.returned(number, [task for task, _ in packet.loads])

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
