"""The fixtures that all tests share.

A test that starts processes takes ``context`` or ``start_method``, and runs once under
each start method. Every test is checked for what it leaves behind. A test that hangs
has all its threads' stacks dumped, and is then ended (see pytest's section in
pyproject.toml).
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections import Counter
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mpkit import _lifeline, _limit, _presence, _runtime, _segment
from mpkit._platform import descriptors
from tests.cluster import Cluster, Host
from tests.support import PATIENCE, Spawn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.context import BaseContext
    from multiprocessing.process import BaseProcess


#: What starts the processes of clusters, if a test has asked for one.
_hosts: list[Host] = []


def pytest_configure() -> None:
    """Have Ctrl-C work, which a shell switches off for what it runs in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """Spare the collection after each test the objects of pytest, numpy and hypothesis."""
    gc.collect()
    gc.freeze()


@pytest.fixture(params=multiprocessing.get_all_start_methods())
def start_method(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test once per start method, which is the program's default meanwhile."""
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method(request.param, force=True)
    yield request.param
    multiprocessing.set_start_method(before, force=True)


@pytest.fixture
def context(start_method: str) -> BaseContext:
    """Return the context of the start method."""
    chosen: BaseContext = multiprocessing.get_context(start_method)
    return chosen


@pytest.fixture
def spawn(context: BaseContext) -> Iterator[Spawn]:
    """Start processes, and leave none behind whatever the test did."""
    started: list[BaseProcess] = []

    def start(target: Callable[..., object], *args: object) -> BaseProcess:
        process: BaseProcess = context.Process(  # type: ignore[attr-defined]
            target=target, args=args
        )
        process.start()
        started.append(process)
        return process

    yield start

    for process in started:
        process.kill()
    for process in started:
        process.join(PATIENCE)
        assert process.exitcode is not None, f"{process} outlived SIGKILL"
        process.close()


@pytest.fixture(params=["packets", "stream"])
def socket_kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the test once per kind of socket, of which channels and links are made meanwhile."""
    if request.param == "packets" and not descriptors.HAS_PACKETS:
        pytest.skip("no local socket keeps packets apart here")
    monkeypatch.setattr(descriptors, "HAS_PACKETS", request.param == "packets")
    return str(request.param)


@pytest.fixture(scope="session")
def cluster_host() -> Iterator[Host]:
    """Return what starts processes of Dask clusters."""
    pytest.importorskip("distributed")
    host = Host()
    _hosts.append(host)
    yield host
    host.close()
    _hosts.remove(host)


@pytest.fixture(scope="session")
def cluster(cluster_host: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Return a Dask cluster of two workers, of one thread each, for tests that do it no harm."""
    with Cluster(cluster_host, tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def cluster_of_one(
    cluster_host: Host, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """As ``cluster``, with one worker."""
    with Cluster(cluster_host, tmp_path_factory.mktemp("cluster"), 1) as cluster:
        yield cluster


@pytest.fixture
def make_cluster(cluster_host: Host, tmp_path: Path) -> Iterator[Callable[..., Cluster]]:
    """Make Dask clusters for this test alone; see `Cluster` for the arguments."""
    with contextlib.ExitStack() as made:

        def make(workers: int = 2, **options: Any) -> Cluster:
            folder = tempfile.mkdtemp(prefix="cluster-", dir=tmp_path)
            return made.enter_context(Cluster(cluster_host, Path(folder), workers, **options))

        yield make


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    """Fail a test that leaves a process, a thread or an open descriptor."""
    threads, descriptors = set(threading.enumerate()), _descriptors()
    yield
    # What the test has made is young. (All of it, for each test, takes half the time of the unit
    # tests: what pytest, numpy and others keep is more with each test.)
    gc.collect(1)
    _settle(lambda: not _children())
    assert not _children(), f"processes are left: {_children()}"
    _settle(lambda: not set(threading.enumerate()) - threads)
    assert not set(threading.enumerate()) - threads, "threads are left"
    _settle(lambda: not _descriptors() - descriptors)
    assert not _descriptors() - descriptors, "descriptors are left open"


def _settle(fact: Callable[[], bool]) -> None:
    """Give what is ending anyway the time to end."""
    end = time.monotonic() + 5
    while not fact() and time.monotonic() < end:
        time.sleep(0.005)
        gc.collect()


def _children() -> list[str]:
    """Return this process's children, but for the helpers of multiprocessing and of the tests."""
    multiprocessing.active_children()  # reaps
    helpers = {_forkserver()._forkserver_pid, _tracker()._pid, *(host.pid for host in _hosts)}
    found: list[str] = []
    for thread in _listed("/proc/self/task"):
        with contextlib.suppress(OSError), open(f"/proc/self/task/{thread}/children") as file:
            found += [pid for pid in file.read().split() if int(pid) not in helpers]
    return found


def _descriptors() -> Counter[str]:
    """Return what this process has open, but for what stays open by design."""
    found: Counter[str] = Counter()
    multiprocessing.active_children()  # reaps those of the fork server too, which end later
    _segment.clear()
    ours = {home._fd for home in _runtime._homes.values()}
    ours |= {presence._fd for presence in _presence._shown.values()}
    ours |= {_forkserver()._forkserver_alive_fd, _tracker()._fd}
    if _lifeline._own is not None:
        ours |= {_lifeline._own._reader, _lifeline._own._writer}
    ours.update(*(host.fds() for host in _hosts))
    files = {semaphore._path for semaphore, _ in _limit._sites.values()}
    for slots in [semaphore._slots for semaphore, _ in _limit._sites.values()]:
        bells = slots.bells if slots else None
        ours |= {fd for bell in bells._mine.values() for fd in bell.fds()} if bells else set()
        ours |= set(bells._rung.values()) if bells else set()
    for fd in _listed("/proc/self/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{fd}")
            # /dev/urandom and the likes are the interpreter's.
            if int(fd) not in ours and target not in files and not target.startswith("/dev/"):
                found[target] += 1
    return found


def _listed(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:  # no /proc
        return []


def _forkserver() -> Any:
    return forkserver._forkserver


def _tracker() -> Any:
    return resource_tracker._resource_tracker
