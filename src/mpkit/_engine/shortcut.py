"""From a caller to an idle worker, without the supervisor in between.

To wake the supervisor for a task takes as long as to wake the worker. So it leaves out
which workers are idle, while nothing waits, and a caller may take one and send it a task.
The supervisor learns of that when it has something to do anyway: at the latest when that
worker reports, or dies.

A caller who waits for nothing but that task (`asked.Asked`) reads the report himself, when the
worker rings back, and lets the next caller have the worker. If the supervisor has slept meanwhile,
it never hears of that task. Where it has to, since it keeps what tasks write, it sleeps on, and
catches up with `ENOUGH_UNHEARD` of them at a time.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

from mpkit._engine.ledger import packets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mpkit._engine.crew import Worker
    from mpkit._engine.ledger import Entry
    from mpkit._worker.wire import Done, Load

#: Of so many tasks the supervisor need not have heard. (To wake it costs as much as a task.)
ENOUGH_UNHEARD = 32


class Handed:
    """A task that a caller has sent to a worker, or was about to."""

    __slots__ = (
        "asked",
        "entry",
        "heard",
        "listens",
        "number",
        "offered",
        "receipt",
        "settled",
        "since",
        "worker",
    )

    def __init__(self, entry: Entry, number: int, worker: Worker, *, asked: bool) -> None:
        self.entry = entry
        self.number = number
        self.worker = worker
        #: Whether the caller waits for the answer.
        self.asked = asked
        #: Where that will be in the worker's journal.
        self.since = worker.inbox.written()
        #: Not empty if it was sent.
        self.receipt: list[int] = []
        #: Whether the supervisor has heard of it, or wants the worker.
        self.heard = False
        #: Whether its caller listens to the worker, or is about to.
        self.listens = True
        #: Whether the next caller may have the worker, as soon as this one listens no more.
        self.offered = False
        #: Whether it is over, and the supervisor will not hear of it.
        self.settled = False


#: Seconds after which tasks of a volley are held back no more, as soon as the next one is packed.
#: (To pack 20,000 numbers takes half of it.)
HOLD = 0.001


class Volley:
    """What one caller submits in a row, and is to be sent together: see `Shortcut.launch`.

    Whoever wakes a worker may have to wait until that has done what it was sent, if there are no
    more processors; and the supervisor waits for the interpreter meanwhile. So the first task
    goes at once, and those behind it when all are there, or `HOLD` has passed.
    """

    def __init__(self) -> None:
        #: What is held back, until when (`time.monotonic`), and what sends it.
        self.waiting: deque[Entry] = deque()
        self.until = 0.0
        self.launch: Callable[[], None] | None = None
        #: By worker, what it was sent last, and how many.
        self.sent: dict[int, tuple[Handed, int]] = {}

    def deal(self, room: dict[int, int]) -> dict[int, list[Entry]]:
        """Take out what waits, for workers that have room for so many, in turns."""
        shares: dict[int, list[Entry]] = {}
        while self.waiting and room:
            for number in list(room):
                if room[number] <= 0:
                    del room[number]
                elif self.waiting:
                    room[number] -= 1
                    shares.setdefault(number, []).append(self.waiting.popleft())
        return shares

    def end(self) -> None:
        """No more will come: hold nothing back."""
        launch, self.launch = self.launch, None
        if self.waiting and launch is not None:
            launch()
        self.sent.clear()  # whose tasks tell him of their ends who has us, and all results


class Shortcut:
    """The idle workers, and what was sent to them.

    ``settles``: whether the supervisor need not hear of what a caller has the answer to.
    """

    def __init__(self, *, settles: bool = False) -> None:
        self._settles = settles
        #: Those that a caller may have, by their numbers. To be changed in here only.
        self.idle: dict[int, Worker] = {}
        self._handed: deque[Handed] = deque()
        #: What callers wait for, by worker: one at a time can listen.
        self._asked: dict[int, Handed] = {}
        self._closed = False
        # Held while a worker is taken and a task sent to it. Re-entrant: a signal handler may
        # submit one, too.
        self._sending = threading.RLock()

    # called by any thread

    def __len__(self) -> int:
        """Return how many tasks were sent of which the supervisor does not know."""
        return len(self._handed)

    def send(self, entry: Entry, *, asked: bool) -> Handed | None:
        """Send a task to a worker that is idle; None if there is none.

        If it has no receipt it could not be sent; then, and if a signal handler raises in here,
        the supervisor finds it as if it had been submitted.
        """
        with self._sending:
            if self._closed or not self.idle:
                return None
            number, worker = self.idle.popitem()
            if not worker.inbox.has_room():  # it is offered again when its reports are read
                return None
            entry.task.set_running_or_notify_cancel()
            handed = Handed(entry, number, worker, asked=asked)
            self._handed.append(handed)  # first, so that it is known before it is reported
            load = entry.task.number, entry.head
            worker.inbox.hand([load], handed.receipt, asked=asked, common=entry.common)
        return handed

    def launch(self, volley: Volley, most: int, workers: int) -> bool:
        """Send what waits in a volley to workers that are idle, or have something of it.

        Each may have so many of them at ``most``, and what nobody may have stays there. Returns
        whether the supervisor is wanted: for what could not be sent (as after `send`), or since
        not all of so many workers have some, and one may have nothing to do before these report.
        """
        wanted = behind = False
        with self._sending:
            # To those of whom the supervisor has heard it may have sent something since.
            ours = {n: last for n, last in volley.sent.items() if not last[0].heard}
            # These come first: they will have done some of it when the others begin.
            room = {n: most - count for n, (_, count) in ours.items()}
            room |= {n: most for n, worker in self.idle.items() if worker.inbox.has_room()}
            shares = volley.deal({} if self._closed else room)
            # Those that are to be woken come last.
            for number in sorted(shares, key=self.idle.__contains__):
                last, count = ours.get(number, (None, 0))
                worker = last.worker if last else self.idle.pop(number, None)
                if worker is None:  # a signal handler's task has it
                    volley.waiting += shares[number]
                    continue
                handed = self._hand(number, worker, shares[number])
                if handed:
                    volley.sent[number] = handed[-1], count + len(handed)
                wanted |= not all(it.receipt for it in handed)
                behind |= count + len(handed) > 1
        return wanted or (behind and len(volley.sent) < workers)

    def _hand(self, number: int, worker: Worker, entries: list[Entry]) -> list[Handed]:
        """Send tasks to a worker, as few packets as there can be. Holds the lock."""
        handed: list[Handed] = []
        for packet in packets(entries):
            loads: list[Load] = []
            receipt: list[int] = []
            for entry in packet:
                it = Handed(entry, number, worker, asked=False)
                handed.append(it)
                # Before it runs, or nobody would know of it after an interruption.
                self._handed.append(it)
                if entry.task.set_running_or_notify_cancel():
                    it.receipt = receipt
                    loads.append((entry.task.number, entry.head))
            if loads:
                worker.inbox.hand(loads, receipt)  # of a volley none has a common function
        return handed

    def answer(self, handed: Handed) -> Done | None:
        """Wait for the answer to what was sent; None if the supervisor will have it."""
        number, answered = handed.number, None
        try:
            with self._sending:
                if handed.heard:  # others may have had the worker meanwhile, and taken the ring
                    return None
                self._asked[number] = handed
            answered = handed.worker.inbox.answer(handed.entry.task.number, handed.since)
        finally:
            # Who is interrupted while he waits for the lock leaves the rest to the supervisor.
            handed.listens = False
            with self._sending:
                if self._asked.get(number) is handed:
                    del self._asked[number]
                    done_unheard = answered is not None and not handed.heard
                    if answered is not None and done_unheard and self._settles:
                        self._settle(handed, answered[1])
                    if (handed.offered or done_unheard) and not self._closed:
                        self.idle[number] = handed.worker
        return None if answered is None else answered[0]

    def _settle(self, handed: Handed, until: int) -> None:
        """Have the supervisor not hear of what is answered. Holds the lock."""
        # Who is interrupted behind the first step leaves it to the supervisor to drop it.
        if handed.worker.inbox.settle(handed.entry.task.number, handed.since, until):
            handed.settled = True
            self._handed.remove(handed)

    def close(self) -> None:
        """Send nothing any more."""
        with self._sending:
            self._closed = True
            self.idle.clear()

    def find(self, task: int) -> Handed | None:
        """Return a task that was sent, if the supervisor does not know of it yet."""
        found = [it for it in list(self._handed) if it.entry.task.number == task]
        return found[0] if found else None

    # called by the supervisor

    def offer(self, number: int, worker: Worker) -> None:
        """Let a caller have a worker, which has nothing to do, unless one had it meanwhile.

        What a second caller sent it would lie behind the first one's task, and nobody would
        look for another worker before that one is done.
        """
        if number in self.idle:
            return
        with self._sending:
            if self._taken(number):
                return
            if asked := self._listening(number):
                asked[0].offered = True
            else:
                self.idle[number] = worker

    def withdraw(self, number: int) -> bool:
        """Let no caller have a worker any more; False if one had it, as `handed` will tell."""
        with self._sending:
            self.idle.pop(number, None)
            taken = self._taken(number)
            for handed in taken + self._listening(number):
                handed.heard, handed.offered = True, False
            return not taken

    def _taken(self, number: int) -> list[Handed]:
        return [handed for handed in self._handed if handed.number == number]

    def _listening(self, number: int) -> list[Handed]:
        """Return what a caller waits for who listens to this worker; forget one that did."""
        asked = self._asked.get(number)
        if asked is None or not asked.listens:
            self._asked.pop(number, None)
            return []
        return [asked]

    def handed(self) -> Iterator[Handed]:
        """Yield what callers have taken upon themselves."""
        while self._handed:
            with self._sending:
                # Whoever is in the midst of it has sent it then, or will not; and has its answer,
                # or leaves that to us.
                if not self._handed:
                    break
                handed = self._handed.popleft()
                handed.heard = True
                dropped = handed.asked and handed.worker.inbox.settled(handed.entry.task.number)
            if not dropped:
                yield handed
