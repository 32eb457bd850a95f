"""How tasks get to a worker, and what happens to those that do not.

Small ones travel several to a packet, those with descriptors alone. What the system has
no room for comes back to the schedule, and is tried again when something has ended.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from mpkit._worker import wire

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mpkit._engine.crew import Worker
    from mpkit._engine.ledger import Ledger
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
        loads: list[wire.Load] = []
        room, common = wire.ROOM, b""
        left = deque(tasks)
        while left:
            task = left[0]
            entry = self._ledger.begin(task)
            if entry is None:
                self._schedule.withdrawn(number, left.popleft())
                continue
            data, fds, parcel = entry.head, _NO_FDS, entry.parcel
            if parcel is not None:
                if not parcel.plain and len(self._crew[number].inbox.bulky) >= MOST_BULKY:
                    break
                try:
                    data, fds = parcel.seal(data)
                except OSError as error:
                    self._flush(number, loads, _NO_FDS, common)
                    loads = []
                    self._cannot_send(number, left.popleft(), error)
                    break
            left.popleft()
            if fds or len(data) + wire.PER_LOAD > room or common is not entry.common:
                self._flush(number, loads, _NO_FDS, common)
                loads, common = [], entry.common
                room = wire.ROOM - len(common)
            loads.append(wire.Load(task, data))
            room -= len(data) + wire.PER_LOAD
            if fds:  # whose they are is clear only if it is alone
                self._flush(number, loads, fds, common)
                loads, room = [], wire.ROOM - len(common)
        self._flush(number, loads, _NO_FDS, common)
        if left:
            self.returned(number, left)

    def _flush(
        self, number: int, loads: list[wire.Load], fds: Sequence[int], common: bytes
    ) -> None:
        if not loads:
            return
        worker = self._crew[number]
        tasks = [load.task for load in loads]
        try:
            sent = worker.inbox.send(loads, fds, common)
        except OSError as error:
            (task,) = tasks  # with descriptors it is alone
            self._cannot_send(number, task, error)
            return
        if not sent:
            self.returned(number, tasks)
            return
        self._ledger.sent(tasks, number, worker.pid)

    def _cannot_send(self, number: int, task: int, error: OSError) -> None:
        """There are no descriptors, or there is no memory, to send a task.

        When another one ends there will be more. If there is none to end, this is its error.
        """
        if self._ledger.in_flight:
            self.returned(number, [task])
        else:
            self._schedule.withdrawn(number, task)
            self._ledger.settle(task, None, error)

    def returned(self, number: int, tasks: Sequence[int]) -> None:
        """These tasks were not taken by a worker."""
        for task in tasks:
            self._ledger.came_back(task)
        self._schedule.returned(number, tasks)
