"""All code that runs only in a worker."""

from __future__ import annotations

import contextlib
import functools
import gc
import itertools
import signal
import time
from typing import TYPE_CHECKING, Any, Final, NoReturn

from mpkit import _outcome, _parcel, _reader, _wait
from mpkit._describe import describe
from mpkit._link import LinkDown
from mpkit._platform import memory, stdlib
from mpkit._platform.descriptors import watched
from mpkit._worker import chunks, packing, shared, wire
from mpkit._worker.journal import MOST_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mpkit._call import Call
    from mpkit._link import Link
    from mpkit._parcel import Parcel
    from mpkit._worker.aside import Beside, Speaker
    from mpkit._worker.journal import Journal
    from mpkit._worker.setup import Setup

_state: dict[str, Any] = {}

_NOW = _wait.Deadline(0)

#: Bytes of the stream of an outcome that fits into the journal.
_MOST_SMALL: Final = MOST_BYTES - wire.DONE_SIZE - len(_parcel.PLAIN)

#: As `stdlib.handle_signal` takes it.
_DEFAULT: Final = int(signal.SIG_DFL)

#: When a task began and ended, the kind of what came of it, and that; sealed, if it is small.
Outcome = tuple[float, float, bytes, "Parcel | bytes"]


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


def main(
    inbox: Link, outbox: Link, journal: Journal | None, setup: Setup, beside: Beside | None = None
) -> None:
    """Be a worker: run what comes in, in order, until told to leave."""
    # Ctrl-C reaches every process of the terminal, and it is the parent that decides.
    # A handler that does nothing, not SIG_IGN: programs that a task starts by exec would
    # inherit that.
    stdlib.handle_signal(signal.SIGINT, _ignore)
    # What the parent installed, and a fork handed down, is not meant for a worker.
    stdlib.handle_signal(signal.SIGTERM, _DEFAULT)
    signal.set_wakeup_fd(-1)
    # What there is now is no task's: under fork it is the parent's, whose garbage is not ours to
    # finalize; under spawn it is modules, which to look through as we end takes 5 ms.
    gc.freeze()
    stdlib.allow_interrupts()  # which were held while we began
    if setup.threads is not None:
        setup.threads.arrive()
    reports = Reports(inbox, outbox, journal, setup.report_memory)
    shared.use(setup.shared)
    speaker = None if beside is None else beside.begin()
    try:
        if setup.init is not None and not _initialized(setup.init, reports):
            return
        reports.send(wire.encode_ready())
        _serve(inbox, reports, speaker)
    except LinkDown:  # there is no more to do, or the pool is gone
        pass
    if setup.finalizer is not None:
        _finalize(setup.finalizer, reports)


def _serve(inbox: Link, reports: Reports, speaker: Speaker | None) -> NoReturn:
    """Run tasks until the link ends."""
    wait = _wait.waiter(inbox.fd)
    lookout, asked = _wait.Lookout(inbox.fd), False
    while True:
        # Not in the call that takes a packet: if a thread that some task left behind has
        # closed our descriptors meanwhile, the packet stays where it can be had back.
        reports.check_inbox()
        # Whoever has just got his answer may ask again at once.
        if not (asked and lookout.look()):
            wait(None)
        packet = inbox.receive()
        assert packet is not None  # there is no deadline
        data, fds = packet
        loads, asked, number, common = wire.decode_for_worker(data)
        for index, (task, call) in enumerate(loads):
            if number and not reports.begin(number, index):
                break
            if speaker is None:
                outcome = _run(task, call, fds, common)
            else:
                run = functools.partial(_run, task, call, fds, common)
                outcome = speaker.around(task, run)
            reports.done(task, outcome, asked=asked)
            if asked:
                reports.ring(task)


def _ignore(number: int, frame: object) -> None:
    """Handle a signal by doing nothing."""


def _initialized(init: Call, reports: Reports) -> bool:
    try:
        call = init.arrived()
        call.fn(*call.args, **call.kwargs)
    except BaseException as error:  # noqa: BLE001  to be raised by the tasks that wait
        parcel = _outcome.pack_error(f"the initializer {init.what}", error, skip_frames=1)
        reports.send(*parcel.seal(wire.init_failed_header()))
        parcel.close()
        return False
    return True


def _finalize(finalizer: Call, reports: Reports) -> None:
    """Have the last word before this worker leaves, and report if that raises."""
    try:
        call = finalizer.arrived()
        call.fn(*call.args, **call.kwargs)
    except BaseException as error:  # noqa: BLE001  for the program to hear of
        parcel = _outcome.pack_error(f"the finalizer {finalizer.what}", error, skip_frames=1)
        with contextlib.suppress(LinkDown):  # then there is nobody to hear of it
            reports.send(*parcel.seal(wire.finalizer_failed_header()))
        parcel.close()


def _run(task: int, packed: bytes, fds: list[int], common: bytes) -> Outcome:
    """Run one task."""
    began = time.monotonic()
    fn: Any
    args: Any
    kwargs: dict[str, Any] = {}
    try:
        if common:
            fn, chunk = packing.unpack_each(common, packed, fds)
            call, args = chunks.run_each, (fn, chunk)
        else:
            fn, args, kwargs = packing.unpack(packed, fds)
            call = fn
    except BaseException as error:  # noqa: BLE001  unpickling is user code
        what = f"task {task}"
        error.add_note(f"(raised while a worker unpickled the arguments of {what})")
        _reader.note_missing(error)
        parcel = _outcome.pack_error(what, error)
        return began, time.monotonic(), _outcome.FAILED, _sealed_if_small(parcel)
    try:
        value = call(*args, **kwargs)
    except BaseException as error:  # noqa: BLE001  to be raised in the parent
        ended = time.monotonic()
        parcel = _outcome.pack_error(f"task {task} ({describe(fn)})", error, skip_frames=1)
        return began, ended, _outcome.FAILED, _sealed_if_small(parcel)
    ended = time.monotonic()
    if _parcel.are_atoms(itertools.chain.from_iterable(value) if common else (value,)):
        try:
            stream = _parcel.dump_atoms(value)
        except BaseException as error:  # noqa: BLE001  as in `pack_result`: there may be no memory
            parcel = _outcome.pack_error(f"task {task}", error)
            return began, ended, _outcome.FAILED, _sealed_if_small(parcel)
        if len(stream) <= _MOST_SMALL:  # as `_sealed_if_small`, without a parcel
            return began, ended, _outcome.ATOMS, _parcel.PLAIN + stream
        return began, ended, _outcome.DONE, _parcel.of(stream)
    kind, parcel = _outcome.pack_result(f"task {task}", fn, value)
    return began, ended, kind, _sealed_if_small(parcel)


def _sealed_if_small(parcel: Parcel) -> Parcel | bytes:
    if not parcel.plain or len(parcel.stream) > _MOST_SMALL:
        return parcel
    sealed, _ = parcel.seal()
    return sealed


class Reports:
    """What a worker says: what is small in its journal, all else by its link, in one order."""

    def __init__(
        self, inbox: Link, outbox: Link, journal: Journal | None, report_memory: bool
    ) -> None:
        self._inbox = inbox
        self._inbox_is_there = watched(inbox.fd)
        self._outbox = outbox
        self._outbox_is_there = watched(outbox.fd)
        self._journal = journal
        self._report_memory = report_memory
        if journal is not None:
            journal.begin()

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send a packet."""
        if not self._outbox_is_there():  # see `_write`
            raise LinkDown
        self._outbox.send(data, fds)
        self._sent()

    def begin(self, packet: int, index: int) -> bool:
        """Begin with a task; False if it was taken back, and those behind it likewise."""
        if self._journal is None or self._journal.begin_task(packet, index):
            return True
        self._write(wire.encode_declined(packet, index))
        return False

    def done(self, task: int, outcome: Outcome, *, asked: bool) -> None:
        """Report what became of a task. A result that was ``asked`` for is the caller's to read."""
        began, ended, kind, parcel = outcome
        resident = memory.resident_bytes() if self._report_memory else 0
        header = wire.done_header(task, began, ended, resident)
        if isinstance(parcel, bytes):
            report = header + kind + parcel
            if self._journal is None:
                self.send(report)
            else:
                self._write(report, asked=asked and kind != _outcome.FAILED)
            return
        what, to = f"task {task}", "the process that has the pool"
        _outcome.send(self._outbox, header, kind, parcel, what, to)
        self._sent()

    def _sent(self) -> None:
        """Note where in the journal belongs what was sent."""
        self._write(b"")

    def check_inbox(self) -> None:
        """Raise LinkDown if some task has put something else in its place: nothing would come."""
        if not self._inbox_is_there():
            raise LinkDown

    def ring(self, task: int) -> None:
        """Tell who has asked for a task that it was reported."""
        self.check_inbox()
        # If nobody takes what we say, there is no room, and nobody waits.
        self._inbox.send(wire.encode_ring(task), (), _NOW)

    def _write(self, record: bytes, *, asked: bool = False) -> None:
        if not self._outbox_is_there():
            # It would hear of no other task. It could write its journal still, but what becomes
            # of a task is not to depend on how large its result is; and what has the number of
            # our descriptor by now may be somebody's connection to anything.
            raise LinkDown
        if self._journal is not None and self._journal.write(record, asked=asked):
            self._outbox.send(wire.WAKE, ())
