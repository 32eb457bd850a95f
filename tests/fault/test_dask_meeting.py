"""How the ends of a channel find each other, with something else happening at every step of it."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.cluster import current_client
from tests.support import PATIENCE, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.cluster import Cluster

pytest.importorskip("distributed")

import mpkit.dask as mpkit
from mpkit.dask import _link, _node


@pytest.fixture
def client(cluster: Cluster) -> Iterator[Any]:
    with current_client(cluster) as client:
        yield client


class Held:
    """Holds the coroutines of this process that come to a certain step."""

    def __init__(self) -> None:
        self.there = threading.Event()
        self._loop: Any = None
        self._go: Any = None

    async def hold(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._go = self._go or asyncio.Event()
        self.there.set()
        await self._go.wait()

    def wait(self) -> None:
        assert self.there.wait(PATIENCE)

    def others_go_on(self) -> None:
        """Return when what can run in the event loop has run."""
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0), self._loop).result(PATIENCE)

    def go(self) -> None:
        self._loop.call_soon_threadsafe(self._go.set)


class Connections:
    """Those that this process makes: what it hears of the scheduler, and its visits, held."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, scheduler: str) -> None:
        self.heard: list[str] = []
        #: Before the answer to a visit is read; and before something is written later.
        self.visit = Held()
        self.writing: Held | None = None
        connect = _node.Node.connect

        async def connect_and_watch(node: _node.Node, address: str) -> Any:
            comm = await connect(node, address)
            if address == scheduler:
                comm.read = self._noting(comm.read)
            else:
                comm.read = self._holding(comm, comm.read)
                comm.write = self._writing(comm.write)
            return comm

        monkeypatch.setattr(_node.Node, "connect", connect_and_watch)

    def _noting(self, read: Callable[..., Any]) -> Callable[..., Any]:
        async def read_and_note() -> Any:
            said = await read()
            self.heard.append(said["op"])
            return said

        return read_and_note

    def _holding(self, comm: Any, read: Callable[..., Any]) -> Callable[..., Any]:
        async def hold_and_read() -> Any:
            comm.read = read
            await self.visit.hold()
            return await read()

        return hold_and_read

    def _writing(self, write: Callable[..., Any]) -> Callable[..., Any]:
        async def hold_and_write(what: Any) -> Any:
            held, self.writing = self.writing, None
            if held is not None:
                await held.hold()
            return await write(what)

        return hold_and_write


@pytest.fixture
def connections(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Connections:
    return Connections(monkeypatch, cluster.address)


def name_of_end(end: mpkit.Channel[Any, Any]) -> str:
    """Return what the end of a channel is for who waits for it."""
    try:
        end.recv()
    except mpkit.EndOfChannel as error:
        return type(error).__name__
    return "none"


def test_one_that_is_closed_while_it_visits_says_goodbye_there(
    client: object, connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one counts it as there: if it just went away, it would be dead."""
    monkeypatch.setattr("mpkit.dask._port._LINGER", 0.0)
    here, there = mpkit.channel()
    here.poll()
    job = mpkit.start(name_of_end, there)
    connections.visit.wait()
    here.close()
    connections.visit.others_go_on()
    connections.visit.go()
    assert job.result(PATIENCE) == "EndOfChannel"


def send_and_tell(end: mpkit.Channel[Any, Any], path: str) -> None:
    """Send ten messages; leave a trace when they are under way; and stay."""
    for number in range(10):
        end.send(number)
    until(lambda: not end._link._outbox)
    loop: Any = end._link._node and end._link._node.loop
    asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop).result(PATIENCE)
    Path(path).write_text(str(os.getpid()))
    end.recv()


def test_what_one_had_sent_to_a_visitor_before_it_was_killed_is_received(
    make_cluster: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The scheduler tells of its end before the visitor has seen that he may come in."""
    path = tmp_path / "sent"
    cluster = make_cluster(1)
    connections = Connections(monkeypatch, cluster.address)
    with cluster.client() as client, client.as_current():
        here, there = mpkit.channel()
        here.poll()
        job = mpkit.start(send_and_tell, there, str(path))
        connections.visit.wait()
        until(path.exists)
        cluster.kill(cluster.workers[0])
        until(lambda: "left" in connections.heard)
        connections.visit.others_go_on()
        connections.visit.go()
        assert [here.recv(PATIENCE) for _ in range(10)] == list(range(10))
        with pytest.raises(mpkit.PeerDied):
            here.recv(PATIENCE)
        here.close()
        job.cancel()  # Dask would wait for another worker
        until(lambda: not _link._busy)


async def hold_connections() -> None:
    """Have ends that come to this worker not reach the scheduler."""
    node: Any = _node.Node
    held, connect = asyncio.Event(), node.connect_to_scheduler

    async def connect_later(here: _node.Node) -> Any:
        await held.wait()
        return await connect(here)

    node._of_test = held, connect
    node.connect_to_scheduler = connect_later


async def release_connections() -> None:
    node: Any = _node.Node
    held, node.connect_to_scheduler = node._of_test
    del node._of_test
    held.set()


def send_one(end: mpkit.Channel[int, Any], path: str) -> None:
    end.send(1)
    Path(path).write_text("sent")


def drop(end: object, path: str) -> None:
    Path(path).write_text("dropped")


@pytest.mark.parametrize(("function", "messages"), [(send_one, [1]), (drop, [])])
def test_a_job_has_not_ended_before_its_ends_have_come(
    client: Any, tmp_path: Path, function: Any, messages: list[int]
) -> None:
    """With its end the client gives up the places of those that never came."""
    path = tmp_path / "done"
    here, there = mpkit.channel()
    client.run(hold_connections)
    try:
        job = mpkit.start(function, there, str(path))
        until(path.exists)
        assert not job.join(0.1)  # it would say so soon, or later
    finally:
        client.run(release_connections)
    assert list(here) == messages
    job.result(PATIENCE)
    here.close()


def test_an_end_that_is_used_first_as_it_comes_says_so_once(
    cluster: Cluster, client: object, connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a thread, between two lines of the event loop: each end would be introduced twice."""
    connections.visit.hold = lambda: asyncio.sleep(0)  # type: ignore[method-assign]
    came: list[int] = []

    def set_and_settle(link: Any, name: str, value: object) -> None:
        object.__setattr__(link, name, value)
        if name == "_settled_told" and link.__dict__.get("_task") and link.seat not in came:
            came.append(link.seat)
            link.settle()

    monkeypatch.setattr(_link.Link, "__setattr__", set_and_settle, raising=False)
    here, there = mpkit.channel(send=int, recv=int)
    until(lambda: len(came) == 2)
    here.send(1)
    assert there.recv(PATIENCE) == 1
    there.send(2)
    assert here.recv(PATIENCE) == 2
    here.close()
    there.close()
    until(lambda: not _link._busy)
    heard = sorted(op for op in connections.heard if op != "left")  # which may come too late
    assert heard == ["listen", "seated", "seated", "visit"]


def test_a_message_is_not_forgotten_while_another_one_is_written(
    client: object, connections: Connections
) -> None:
    """Writing takes its time with some of Dask's protocols."""
    connections.visit.hold = lambda: asyncio.sleep(0)  # type: ignore[method-assign]
    here, there = mpkit.channel(send=int, recv=int)
    here.send(1)
    assert there.recv(PATIENCE) == 1
    held = connections.writing = Held()
    here.send(2)
    held.wait()
    here.send(3)
    held.others_go_on()
    held.go()
    assert [there.recv(PATIENCE) for _ in range(2)] == [2, 3]
    here.close()
    there.close()
