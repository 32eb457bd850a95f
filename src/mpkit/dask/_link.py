"""The connection of one end of a channel to the other, and how that comes about.

All of it is one coroutine in the event loop of a worker or client, `Link._live`: from when the
end is made or has come to its place, until both ends have said goodbye, or one has died. On the
connection go lists of items: messages, how many bytes of them were taken out, and goodbyes. What
comes is read at once, so that the end of who sends is seen also by who is busy.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from mpkit._errors import BrokenChannel, ChannelMoved, EndOfChannel, PeerDied
from mpkit.dask._broker import MEET
from mpkit.dask._node import VISIT, dask
from mpkit.dask._state import CLOSED, State

if TYPE_CHECKING:
    from mpkit.dask._node import Node

#: Links that must live on until all was said, though nobody uses them.
_busy: set[Link] = set()

#: Why nothing comes from one who left before he was met.
_LEFT: Final = {
    "died": "its connection to the scheduler was lost",
    "removed": "the scheduler has given up its worker",
    "lost": "the scheduler is gone, by which ends meet",
}

#: Seconds within which the scheduler has told that an end has left, and one that has left has sent
#: all that it had to send. (Arbitrary: Dask itself tries for 30 seconds to reach a server.)
_HEARD_OF: Final = 5.0

#: Those that wait for a visit in this process, by channel and number of their end.
_expecting: dict[tuple[str, int], Link] = {}


class Gone(NamedTuple):
    """What the scheduler said of the other end: how it left, and why nothing more will come."""

    how: str
    why: str


class Link(State):
    """An end, with the coroutine that talks for it."""

    def __init__(self, channel: str, seat: int, label: str) -> None:
        super().__init__(channel, seat, label)
        #: The connection that comes from the other end, or goes to it; or why there will be none.
        self._visitor: asyncio.Future[Any] | None = None
        #: Whether it came from there.
        self._hosts = False
        #: Whether this end has asked the other one in, and has not been answered yet: it may count
        #: as met there, where its absence would be a death.
        self._knocked = False
        #: Whether the scheduler is gone.
        self._alone = False
        self._task: asyncio.Task[None] | None = None

    def _live_on(self) -> None:
        _busy.add(self)

    def _begin(self) -> None:
        assert self._node is not None
        self._wake = asyncio.Event()
        self._wake.set()
        self._task = asyncio.get_running_loop().create_task(self._live(self._node))

    async def _live(self, node: Node) -> None:
        """Be the end of the channel, from its coming to its goodbye."""
        end: EndOfChannel | BrokenChannel = BrokenChannel(
            self.label, "the worker or client that it belongs to was closed"
        )
        assert self._task is not None
        try:
            # If the scheduler has ended, and then the client for that reason, this goes on.
            with node.cancelling(self._task, lambda: not self._alone):
                end = PeerDied(self.label, None, await self._meet(node))
        except OSError as error:
            end = BrokenChannel(self.label, f"the scheduler cannot be reached: {error}")
        except Exception as error:
            end = BrokenChannel(self.label, f"{type(error).__name__}: {error}")
            raise
        finally:  # also if this is cancelled, when the loop ends
            with self.changed:
                self._end(end)
                self.over = True
                self._tell()
            _busy.discard(self)

    async def _meet(self, node: Node) -> str:
        """Find the other end by the scheduler, and talk to it; return why that has ended."""
        self._visitor = asyncio.get_running_loop().create_future()
        node.receive(_visited)
        scheduler: Any = None
        try:
            scheduler = await node.connect_to_scheduler()
            # Looked at once: a thread may use the end for the first time right now.
            settled = self._settled_told = self.settled
            if settled and not self._expect():
                return self._refused()
            what = {"channel": self.channel, "number": self.seat, "settled": settled}
            await scheduler.write({"op": MEET, **what, "address": node.address})
            answer = await scheduler.read()
            if not answer:
                raise OSError("it knows of no channels, as if it had been started anew")
            if answer["op"] != "seated":
                return self._refused()
            with self.changed:
                self.seated = True
                self._tell()
            return await self._find_and_talk(node, scheduler)
        finally:
            if _expecting.get((self.channel, self.seat)) is self:
                del _expecting[self.channel, self.seat]
            if scheduler is not None:
                await scheduler.close()

    def _expect(self) -> bool:
        """Be known to who visits this process; False if another one is, by the same name."""
        return _expecting.setdefault((self.channel, self.seat), self) is self

    def _refused(self) -> str:
        why = "was at another place before, and that is where it stays: it moves once"
        with self.changed:
            self._end(ChannelMoved(self.label, why))
        return ""

    async def _find_and_talk(self, node: Node, scheduler: Any) -> str:
        """Talk over the connection that comes first: one that was found, or a visitor's."""
        assert self._visitor is not None
        finder = asyncio.create_task(self._find(node, scheduler))
        leaver = asyncio.create_task(self._nothing_to_say(scheduler))
        try:
            waited = {finder, leaver, self._visitor}
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if self._visitor.done():
                found = self._visitor.result()
                if not isinstance(found, Gone):
                    await _cancelled(leaver)  # from now on `_say` looks what there is to say
                    return await self._talk(found, finder)
                self._break(found.why)
                return ""
            self._visitor.cancel()  # who comes now comes too late, and hears that of the scheduler
            if leaver.done():
                leaver.result()
                return ""
            gone = finder.result()
            if gone.how == "moved":
                return self._refused()
            if gone.how == "closed":
                with self.changed:
                    self._end(EndOfChannel(self.label))
            elif gone.how == "lost":
                self._break(gone.why)
            return gone.why
        finally:
            await _cancelled(finder, leaver)

    def _break(self, why: str) -> None:
        with self.changed:
            self._end(BrokenChannel(self.label, why))

    async def _nothing_to_say(self, scheduler: Any) -> None:
        """Tell the scheduler what this end does before it has met the other; return if it leaves."""
        assert self._wake is not None
        while not self._abandoned:
            self._wake.clear()
            if self._leaves() and not self._knocked:
                await scheduler.write({"op": "goodbye"})
                return
            if self.settled and not self._settled_told:
                self._settled_told = True
                self._expect()
                await scheduler.write({"op": "settled"})
            await self._wake.wait()

    def _leaves(self) -> bool:
        """Tell whether this end was closed, and has nothing to say to the other one."""
        with self.changed:
            return self.closing and not self._outbox

    async def _find(self, node: Node, scheduler: Any) -> Gone:
        """Do what the scheduler says; return how the other end has left."""
        listener: Any = None
        visit: asyncio.Task[None] | None = None
        try:
            while True:
                try:
                    said = await scheduler.read()
                except OSError:
                    self._alone = True
                    said = {"op": "left", "how": "lost"}
                if said["op"] == "listen":
                    listener = await node.listen(_visited_alone)
                    await scheduler.write({"op": "address", "address": listener.contact_address})
                elif said["op"] == "visit":
                    visit = asyncio.create_task(self._visit(node, said["address"]))
                elif said["op"] == "moved":
                    return Gone("moved", "")
                elif said["op"] == "left":
                    how: str = said["how"]
                    if not self.settled and how != "lost":
                        continue  # we only keep the place
                    if visit is not None and self._knocked and how != "removed":
                        # What it had sent is under way, and so is the end of that connection.
                        await asyncio.wait({visit}, timeout=_HEARD_OF)
                    return Gone(how, _LEFT.get(how, ""))
        finally:
            if listener is not None:
                listener.stop()
            if visit is not None:
                await _cancelled(visit)

    async def _visit(self, node: Node, address: str) -> None:
        """Connect to the other end, as if it had come here."""
        assert self._visitor is not None
        assert self._wake is not None
        comm: Any = None
        try:
            comm = await node.connect(address)
        except OSError as error:
            # Who has just left cannot be reached either, and the scheduler says how he did.
            await asyncio.sleep(_HEARD_OF)
            why = f"it was at {address}, which cannot be reached: {error}"
            self._visitor.set_result(Gone("lost", why))
            return
        if self._leaves():  # and says so to the scheduler
            comm.abort()
            return
        met, self._knocked = False, True
        try:
            place = {"channel": self.channel, "seat": 1 - self.seat}
            await comm.write({"op": VISIT, **place, "reply": False})
            await comm.read()
            met = not self._visitor.done()
        except OSError:  # it has just left: the scheduler says how
            pass
        finally:
            self._knocked = False
            self._wake.set()
            if met:
                self._visitor.set_result(comm)
            else:
                comm.abort()

    async def _talk(self, comm: Any, finder: asyncio.Task[Gone]) -> str:
        """Say and hear all there is, until one end has gone; return why it has."""
        # Frames are passed on as they are, which takes no time and needs no thread.
        comm.deserialize = comm.allow_offload = False
        with self.changed:
            self.met = True
            self._tell()
        if self._hosts:
            with contextlib.suppress(OSError):
                await comm.write(())  # there is somebody: see `_visit`
        hearing = asyncio.create_task(self._hear(comm))
        saying = asyncio.create_task(self._say(comm))
        watched: set[asyncio.Task[Any]] = {hearing, finder}
        try:
            while True:
                done, watched = await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
                if hearing in done:
                    return hearing.result()
                # Who has left the scheduler may have said more on this connection, which will
                # tell of his end. Of one who stands still it does not.
                for gone in (one.result() for one in done):
                    if isinstance(gone, Gone) and gone.how == "removed":
                        return gone.why
        finally:
            await _cancelled(hearing, saying)
            await comm.close()

    async def _say(self, comm: Any) -> None:
        """Write what there is to say, as often as there is something."""
        assert self._wake is not None
        while True:
            self._wake.clear()
            with self.changed:
                items = self._items()
            if items:
                try:
                    await comm.write(items)
                except OSError:
                    return  # who hears learns of it, too
            if items and items[-1][0] == CLOSED:
                return
            await self._wake.wait()

    async def _hear(self, comm: Any) -> str:
        """Note what comes, until the end; return why that came."""
        while True:
            try:
                items = await comm.read()
            except OSError as error:
                cause = error.__cause__
                why = f" ({cause})" if type(cause) in (OSError, TimeoutError) else ""
                return f"the connection to {comm.peer_address} was lost{why}"
            except Exception as error:  # noqa: BLE001  Dask's own, of bytes that it did not write
                return self._no_message(error)
            try:
                with self.changed:
                    for item in items:
                        self._take(*item)
                    self._tell()
            except (TypeError, ValueError) as error:
                return self._no_message(error)
            if self.ended is not None and self.broken is not None:
                return ""

    def _no_message(self, error: Exception) -> str:
        self._break(f"what arrived is not a message: {error}")
        return ""


async def _cancelled(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and wait for their end."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _visited(comm: Any, channel: str, seat: int) -> Any:
    """Hand a connection to the end that waits for it. An operation of a worker."""
    link = _receive(comm, channel, seat)
    if link is not None and link._task is not None:
        # Who returns gives the connection back to the server, which would read from it.
        await asyncio.wait({link._task})
    return dask("distributed.core").Status.dont_reply


async def _visited_alone(comm: Any) -> None:
    """As `_visited`, for a listener of our own."""
    try:
        said = await comm.read()
        channel, seat = said["channel"], said["seat"]
    except (OSError, KeyError, TypeError):
        comm.abort()
    else:
        _receive(comm, channel, seat)


def _receive(comm: Any, channel: str, seat: int) -> Link | None:
    link = _expecting.get((channel, seat))
    if link is None or link._visitor is None or link._visitor.done():
        comm.abort()
        return None
    link._hosts = True
    link._visitor.set_result(comm)
    return link
