"""All code that runs only in a worker."""

from __future__ import annotations

import contextlib
import signal
import time
from typing import TYPE_CHECKING, Any

from mpkit import _outcome, _parcel, _platform
from mpkit._link import LinkDown
from mpkit._pool import wire

if TYPE_CHECKING:
    from mpkit._link import Link
    from mpkit._parcel import Parcel
    from mpkit._process import Call

_state: dict[str, Any] = {}


def worker_state() -> dict[str, Any]:
    """Return the dictionary of the worker that runs this task; it lives as long as the worker.

    For what is costly to make and cannot travel: a database connection, a loaded model.
    An initializer fills it and the tasks read it. Outside a worker it is a dictionary of
    the calling process.

    Example:
        >>> import mpkit
        >>> def connect(url):
        ...     mpkit.worker_state()["db"] = f"connected to {url}"
        >>> def query(_):
        ...     return mpkit.worker_state()["db"]
        >>> with mpkit.TaskPool(0, initializer=connect, initargs=("db:1",)) as pool:
        ...     pool.map(query, range(2))
        ['connected to db:1', 'connected to db:1']

    """
    return _state


def main(inbox: Link, outbox: Link, init: Call | None, report_memory: bool) -> None:
    """Be a worker: run what comes in, in order, until told to leave."""
    # Ctrl-C reaches every process of the terminal, and it is the parent that decides.
    # A handler that does nothing, not SIG_IGN: programs that a task starts by exec would
    # inherit that.
    signal.signal(signal.SIGINT, _ignore)
    # What the parent installed, and a fork handed down, is not meant for a worker.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    try:
        if init is not None and not _initialized(init, outbox):
            return
        outbox.send(wire.encode_ready(), [])
        while True:
            packet = inbox.receive()
            assert packet is not None  # there is no deadline
            data, fds = packet
            for load in wire.decode_for_worker(data).loads:
                _report(outbox, load.task, *_run(load, fds), report_memory)
    except LinkDown:  # there is no more to do, or the pool is gone
        return


def _ignore(number: int, frame: object) -> None:
    """Handle a signal by doing nothing."""


def _initialized(init: Call, outbox: Link) -> bool:
    try:
        call = init.arrived()
        call.fn(*call.args, **call.kwargs)
    except BaseException as error:  # noqa: BLE001  to be raised by the tasks that wait
        parcel = _outcome.pack_error(f"the initializer {init.what}", error, skip_frames=1)
        data, fds = parcel.seal(wire.init_failed_header())
        outbox.send(data, fds)
        parcel.close()
        return False
    return True


def _run(load: wire.Load, fds: list[int]) -> tuple[float, float, bytes, Parcel]:
    """Run one task; return when it began and ended, the kind of its outcome, and that."""
    began = time.monotonic()
    what = f"task {load.task}"
    try:
        fn, args, kwargs = _parcel.unpack(load.call, fds)
    except BaseException as error:  # noqa: BLE001  unpickling is user code
        error.add_note(f"(raised while a worker unpickled the arguments of {what})")
        return began, time.monotonic(), _outcome.FAILED, _outcome.pack_error(what, error)
    try:
        value = fn(*args, **kwargs)
    except BaseException as error:  # noqa: BLE001  to be raised in the parent
        ended = time.monotonic()
        parcel = _outcome.pack_error(f"{what} ({_outcome.describe(fn)})", error, skip_frames=1)
        return began, ended, _outcome.FAILED, parcel
    ended = time.monotonic()
    return began, ended, *_outcome.pack_result(what, fn, value)


def _report(
    outbox: Link,
    task: int,
    began: float,
    ended: float,
    kind: bytes,
    parcel: Parcel,
    report_memory: bool,
) -> None:
    resident = _platform.resident_bytes() if report_memory else 0
    header = wire.done_header(task, began, ended, resident)
    parcel, data, fds = _outcome.seal(header, kind, parcel, f"task {task}")
    with contextlib.closing(parcel):
        outbox.send(data, fds)
        parcel.depart("moved to the process that has the pool")
