"""How a peer may leave, and in the middle of what: what the other end gets, each time.

The table says it. Each of its rows holds whoever else is around: siblings that were
forked while the parent had both ends, or that are forked later, and a parent that keeps
the end it gave away. How long the news takes is printed (``pytest -rP`` shows it) and
not judged: the issue says 200 ms, and a test machine may be busy.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import itertools
import multiprocessing
import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from mpkit import (
    BrokenChannel,
    Channel,
    ChannelClosed,
    ChannelTimeout,
    EndOfChannel,
    PeerDied,
    Signal,
    channel,
)
from mpkit._platform import descriptors
from tests.support import PATIENCE, Spawn, asleep, stopped, until, wake_ups

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.process import BaseProcess

End = Channel[Any, Any]

Outcome = type[Exception]
END, DIED, ALIVE = EndOfChannel, PeerDied, ChannelTimeout

#: What the other end gets when its peer leaves ...
WHERE = ["before any message", "inside a message", "after messages"]
# fmt: off
TABLE: dict[str, tuple[Outcome, Outcome, Outcome, str | None]] = {
    # how          before   inside   after    the reason, where it can be known
    "close":      (END,     END,     END,     None),
    "return":     (END,     END,     END,     None),
    "sys.exit":   (END,     END,     END,     None),
    "exception":  (END,     END,     END,     None),
    "os._exit":   (DIED,    DIED,    DIED,    "exited with code 3"),
    "SIGKILL":    (DIED,    DIED,    DIED,    "was killed by SIGKILL"),
    "SIGTERM":    (DIED,    DIED,    DIED,    "was killed by SIGTERM"),
    "SIGSEGV":    (DIED,    DIED,    DIED,    "was killed by SIGSEGV"),
    "SIGABRT":    (DIED,    DIED,    DIED,    "was killed by SIGABRT"),
    "SIGSTOP":    (ALIVE,   ALIVE,   ALIVE,   None),  # and all goes on after SIGCONT
}
# fmt: on

#: ... whoever has, or might have, a copy of its end; and over either kind of socket.
AROUND = [
    "alone",
    "siblings started before",
    "siblings started after",
    "the parent keeps what it gave away",
    "over a stream",
]

HOW: dict[str, Callable[[], object]] = {
    "return": lambda: None,
    "sys.exit": lambda: sys.exit(3),
    "exception": lambda: 1 // 0,
    "os._exit": lambda: os._exit(3),
    "SIGKILL": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "SIGTERM": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "SIGSEGV": lambda: ctypes.string_at(0),
    "SIGABRT": lambda: os.abort(),
    "SIGSTOP": lambda: os.kill(os.getpid(), signal.SIGSTOP),
}

#: What was sent before, in the last column: small ones, and one beside its packet.
MESSAGES = ["first", "x" * 1_000_000, *range(40)]


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("how", TABLE)
def test_each_way_to_leave_at_each_moment(
    spawn: Spawn,
    how: str,
    around: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if around == "over a stream":
        monkeypatch.setattr(descriptors, "HAS_PACKETS", False)
    *outcomes, reason = TABLE[how]
    cells = dict(zip(WHERE, outcomes))
    pairs = {where: channel() for where in cells}
    given = {where: there for where, (_, there) in pairs.items()}
    ends = {where: here for where, (here, _) in pairs.items()}
    control, childs = channel()
    if around == "siblings started before":
        siblings(spawn)
    child = spawn(act, SameSockets(), childs, given, how)
    if around == "siblings started after":
        siblings(spawn)
    if around != "the parent keeps what it gave away":
        del pairs, childs
        given.clear()

    assert control.recv(PATIENCE) == "ready"
    until(lambda: is_blocked(child))
    sent, since = control.request("go", PATIENCE)

    if how == "SIGSTOP":
        until(lambda: stopped(child.pid or 0))
    for where, outcome in cells.items():
        got, error = drain(ends[where], how)
        check_messages(where, got, sent)
        assert type(error) is outcome, where
        if isinstance(error, PeerDied):
            check_facts(error, child, where, reason)
    print(f"{how}, {around}: {(time.monotonic() - since) * 1000:.1f} ms")

    if how == "SIGSTOP":
        check_that_all_goes_on(child, ends)
    else:
        for here in ends.values():
            with pytest.raises(BrokenChannel):
                here.send("too late")
    for here in (control, *ends.values()):
        here.close()


def siblings(spawn: Spawn) -> None:
    """Start a process that forgets about whatever it inherited."""
    born = Signal()
    spawn(hang, born)
    assert born.wait(PATIENCE)


def hang(born: Signal) -> None:
    born.set()
    signal.pause()


def drain(end: End, how: str) -> tuple[list[Any], Exception]:
    """Receive until there is no more, and return why."""
    got: list[Any] = []
    while True:
        try:
            got.append(end.recv(0.01 if how == "SIGSTOP" else PATIENCE))
        except (EndOfChannel, ChannelTimeout) as error:
            return got, error


def check_messages(where: str, got: list[Any], sent: int) -> None:
    """Everything that was sent whole has arrived, once and in order; and no part of one."""
    if where == "inside a message":
        assert got == [numbered(number) for number in range(len(got))]
        # More may have gone out after they were counted: it was not blocked for good.
        assert sent <= len(got)
    else:
        assert got == (MESSAGES if where == "after messages" else [])


def check_facts(error: PeerDied, child: BaseProcess, where: str, reason: str | None) -> None:
    if error.pid is None and (where == "before any message" or not reason):
        return  # nobody knows who would have spoken, or he lives on: it was no death
    assert error.pid == child.pid
    if reason:
        assert error.reason in possible(reason)


def possible(reason: str) -> set[str | None]:
    """A child of this very process is asked in vain if it is too early, as the fork server is."""
    forked = multiprocessing.get_start_method() != "forkserver"
    return {reason} if forked and descriptors.HAS_PIDFDS else {reason, None}


def check_that_all_goes_on(child: BaseProcess, ends: dict[str, End]) -> None:
    assert child.pid
    os.kill(child.pid, signal.SIGCONT)
    for end in ends.values():
        assert list(end)[-1] == "goes on"
    child.join(PATIENCE)
    assert child.exitcode == 0


# what runs in the child


class SameSockets:
    """Makes the ends that arrive after it be of the same kind as here."""

    def __reduce__(self) -> Any:
        return set_sockets, (descriptors.HAS_PACKETS,)


def set_sockets(packets: bool) -> None:
    descriptors.HAS_PACKETS = packets  # type: ignore[misc]


def act(_: object, control: End, ends: dict[str, End], how: str) -> None:
    """Say what is to be said, be inside one message for ever, and leave."""
    faulthandler.disable()
    signal.signal(signal.SIGSEGV, signal.SIG_DFL)
    with open(os.devnull, "w") as nowhere:  # tracebacks are expected
        os.dup2(nowhere.fileno(), 2)
    for message in MESSAGES:
        ends["after messages"].send(message)
    done: list[int] = []
    enough = threading.Event()
    inside = ends["inside a message"]
    sending = threading.Thread(target=send_all, args=(inside, done, enough), daemon=True)
    sending.start()
    control.send("ready")
    assert control.recv() == "go"
    control.send((len(done), time.monotonic()))
    if how == "close":
        for end in ends.values():
            end.close()
        control.recv()  # it is not our exit that they notice
    HOW[how]()
    if how == "SIGSTOP":
        enough.set()
        sending.join()
        for end in ends.values():
            end.send("goes on")


def send_all(end: End, done: list[int], enough: threading.Event) -> None:
    """Send until there is no room, be it for a packet (or half of one), be it for a large one."""
    with contextlib.suppress(ChannelClosed, BrokenChannel):
        for number in itertools.count():
            end.send(numbered(number))
            done.append(number)
            if enough.is_set():
                return


def numbered(number: int) -> tuple[int, bytes]:
    return number, bytes([number % 251]) * (60_000, 300_000)[number % 2]


def is_blocked(child: BaseProcess) -> bool:
    """Tell whether the child waits, in all its threads, and not for each other."""
    pid = child.pid or 0
    before = wake_ups(pid)
    return asleep(pid) and asleep(pid) and wake_ups(pid) == before
