"""In the scheduler: where the ends of channels find each other, and jobs ask if they are the first.

Each end keeps a connection to the scheduler as long as it is used. When both of a channel have
come, one of them is told the address of the other, and what they send goes from one to the other
directly. While they have no such connection, it is told here that one has left.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

from distributed.core import Status
from distributed.diagnostics.plugin import SchedulerPlugin

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

#: The operations of the scheduler: to come to a channel's meeting, and to begin a job.
MEET: Final = "mpkit_meet"
BEGIN: Final = "mpkit_begin"
#: The name of the plugin; another version of it has another one.
NAME: Final = "mpkit-broker-1"

#: How many channels that are no more are remembered, so that nobody can come to one of them
#: again. (Arbitrary. A task that Dask runs again comes within minutes.)
_REMEMBERED: Final = 10_000


class Seat:
    """One end of a channel, as far as the scheduler knows it."""

    def __init__(self) -> None:
        #: The connection to who has it, and his address if he is a worker.
        self.comm: Any = None
        self.address: str | None = None
        #: Whether it stays there. Who has made it keeps it until it has come to where it goes.
        self.settled = False
        #: How it has left, if it has: it was closed, or has died, or its worker was removed.
        self.left: str | None = None

    async def tell(self, **what: object) -> None:
        """Tell who has it something, if he is there."""
        await _tell(self.comm, **what)


class Meeting:
    """The two ends of a channel."""

    def __init__(self) -> None:
        self.seats = Seat(), Seat()
        self._introduced = False

    def over(self) -> bool:
        """Whether nobody comes any more."""
        return all(seat.left for seat in self.seats)

    async def introduce(self) -> None:
        """Have one end tell where it can be visited, once, when both are at their places."""
        there = all(seat.settled and seat.comm is not None for seat in self.seats)
        if there and not self._introduced:
            self._introduced = True
            visitor, host = self.seats
            if host.address is None and visitor.address is not None:
                visitor, host = host, visitor
            if host.address is None:  # two clients: one has to open a port
                await host.tell(op="listen")
            else:
                await visitor.tell(op="visit", address=host.address)

    async def tell_who_left(self, number: int) -> None:
        """Tell an end that has come that the other one is not there any more, if so."""
        left = self.seats[1 - number].left
        if left is not None:
            await self.seats[number].tell(op="left", how=left)

    async def leave(self, number: int, how: str) -> None:
        """Note that an end has left, and tell the other one."""
        seat = self.seats[number]
        if seat.left is None:
            seat.left = how
            await self.seats[1 - number].tell(op="left", how=how)


class Broker(SchedulerPlugin):
    """The plugin. All of it runs in the scheduler's event loop."""

    name = NAME
    idempotent = True

    def __init__(self) -> None:
        self._scheduler: Any = None
        self._meetings: dict[str, Meeting] = {}
        self._ended: OrderedDict[str, None] = OrderedDict()
        self._begun: OrderedDict[str, None] = OrderedDict()

    async def start(self, scheduler: Any) -> None:
        """Begin, in the scheduler."""
        self._scheduler = scheduler
        handlers: dict[str, Callable[..., Awaitable[Any]]] = scheduler.handlers
        handlers[MEET] = self.meet
        handlers[BEGIN] = self.begin

    async def meet(
        self, comm: Any, channel: str, number: int, address: str | None, settled: bool
    ) -> Any:
        """Attend to an end as long as it is connected."""
        meeting = self._meetings.get(channel)
        if meeting is None and channel not in self._ended:
            meeting = self._meetings[channel] = Meeting()
        seat = meeting.seats[number] if meeting else None
        if meeting is None or seat is None or not _is_free(seat, settled):
            await comm.write({"op": "refused"})
            return Status.dont_reply
        # Before anything is awaited: then who had it may leave, or another one come.
        before, seat.comm, seat.address, seat.settled = seat.comm, comm, address, settled
        how = "died"
        try:
            # The first that he hears: from now on others tell him things, too.
            await _tell(comm, op="seated")
            await _tell(before, op="moved")
            await meeting.tell_who_left(number)
            await meeting.introduce()
            while True:
                said = await comm.read()
                if seat.comm is not comm:
                    break
                if said["op"] == "goodbye":
                    how = "closed"
                elif said["op"] == "settled":
                    seat.settled = True
                    await meeting.tell_who_left(number)
                    await meeting.introduce()
                elif said["op"] == "address":
                    await meeting.seats[1 - number].tell(op="visit", address=said["address"])
        except OSError:  # it is gone
            pass
        finally:
            if seat.comm is comm:
                seat.comm = None
                await meeting.leave(number, how)
            if meeting.over():
                self._meetings.pop(channel, None)
                _remember(self._ended, channel)
        return Status.dont_reply

    async def remove_worker(self, scheduler: Any, worker: str, **_: Any) -> None:
        """Tell who talks to a worker that the cluster has given it up: it may just stand still."""
        for meeting in list(self._meetings.values()):
            for number, seat in enumerate(meeting.seats):
                if seat.address == worker:
                    await meeting.leave(number, "removed")

    async def begin(self, key: str) -> bool:
        """Tell a job whether it may begin, which it may once; have Dask not run it again."""
        if key in self._begun:
            return False
        _remember(self._begun, key)
        task = self._scheduler.tasks.get(key)
        if task is not None:
            # The next death of its worker is one too many for the scheduler.
            task.suspicious = max(task.suspicious, self._scheduler.allowed_failures)
        return True


def _is_free(seat: Seat, settled: bool) -> bool:
    """Tell whether an end may come here: its maker's at first, and then once where it goes."""
    return seat.left is None and not seat.settled and (settled or seat.comm is None)


async def _tell(comm: Any, **what: object) -> None:
    if comm is not None:
        with contextlib.suppress(OSError):
            await comm.write(what)


def _remember(known: OrderedDict[str, None], name: str) -> None:
    known[name] = None
    while len(known) > _REMEMBERED:
        known.popitem(last=False)
