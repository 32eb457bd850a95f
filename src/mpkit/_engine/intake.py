"""What callers give to a pool: by its mailbox, or straight to a worker that is idle."""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, Any, Final

from mpkit._engine.ledger import Entry
from mpkit._engine.reserve import FEW
from mpkit._engine.shortcut import ENOUGH_UNHEARD, HOLD, Shortcut
from mpkit._platform import descriptors
from mpkit._task.asked import Asked
from mpkit._worker import wire

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mpkit._engine.crew import Worker
    from mpkit._engine.ledger import Ledger
    from mpkit._engine.mailbox import Mailbox
    from mpkit._engine.schedule import Schedule
    from mpkit._engine.shortcut import Handed, Volley
    from mpkit._engine.verdict import Verdict
    from mpkit._parcel import Parcel
    from mpkit._task.task import Task
    from mpkit._watch.recorder import Recorder

#: What becomes of those for whom it is too late.
STOPPED: Final = "was stopped with its pool"


class Intake:
    """Takes calls from any thread, and has them taken in by the supervisor's.

    ``answers``: whether a caller who waits may read the report of its task itself; ``settles``:
    whether nobody else has to hear of that, then.
    """

    def __init__(
        self,
        mailbox: Mailbox,
        crew: dict[int, Worker],
        ledger: Ledger,
        schedule: Schedule,
        verdict: Verdict,
        recorder: Recorder,
        *,
        answers: bool,
        settles: bool,
    ) -> None:
        self._mailbox = mailbox
        self._crew = crew
        self._ledger = ledger
        self._schedule = schedule
        self._verdict = verdict
        self._paces = verdict.paces
        self._recorder = recorder
        self._answers = answers
        self.shortcut = Shortcut(settles=settles)
        #: Whether nothing is run any more.
        self.stopped = False
        recorder.unheard = lambda: len(mailbox) + len(self.shortcut)

    # called by any thread

    def submit(
        self,
        task: Task[Any],
        head: bytes,
        parcel: Parcel | None,
        common: bytes = b"",
        volley: Volley | None = None,
    ) -> None:
        """Have a call run, which `packing.pack` or `packing.Each` has made."""
        entry = Entry(task, head, parcel, common)
        light = parcel is None and task.options.timeout is None
        if light and volley is not None:
            self._join(volley, entry)
            return
        if light and self._paces is not None:
            entry.short = self._paces.are_short(task.what)
        if not (light and self.shortcut.idle and self._sent(entry)):
            self._mailbox.submit(entry)

    def submit_small(
        self, tasks: Sequence[Task[Any]], heads: Sequence[bytes], common: bytes
    ) -> None:
        """As `submit`, for calls of one function without parcels whose tasks have the same options."""
        entries = [Entry(task, head, None, common) for task, head in zip(tasks, heads, strict=True)]
        sent, light = 0, tasks[0].options.timeout is None
        if light and self._paces is not None and self._paces.are_short(tasks[0].what):
            for entry in entries:
                entry.short = True
        while light and sent < len(entries) and self.shortcut.idle and self._sent(entries[sent]):
            sent += 1
        if sent < len(entries):
            self._mailbox.submit(*entries[sent:])

    def _sent(self, entry: Entry) -> bool:
        """Send a task to an idle worker, if there is one that should have it."""
        task = entry.task
        if entry.short and not self._wakes_more(task):
            return False
        asked = task if isinstance(task, Asked) and self._answers else None
        handed = self.shortcut.send(entry, asked=asked is not None)
        if handed is None:
            return False
        if handed.receipt and asked is not None:
            asked.answer = functools.partial(self._answer, asked, handed)
        if not handed.receipt or len(self.shortcut) >= ENOUGH_UNHEARD:
            self._mailbox.wake()
        return True

    def _wakes_more(self, task: Task[Any]) -> bool:
        """Tell whether to send a short task to one more worker, and not behind others."""
        return isinstance(task, Asked) or len(self.shortcut) + self._schedule.unreported < FEW

    def _join(self, volley: Volley, entry: Entry) -> None:
        """Have a task run with others."""
        if volley.launch is None:
            volley.launch = functools.partial(self._launch, volley)
        volley.waiting.append(entry)
        if time.monotonic() >= volley.until:
            self._launch(volley)
            volley.until = time.monotonic() + HOLD

    def _launch(self, volley: Volley) -> None:
        wanted = self.shortcut.launch(volley, self._schedule.most_ahead, len(self._crew))
        if wanted or len(self.shortcut) >= ENOUGH_UNHEARD:
            self._mailbox.wake()
        while volley.waiting:
            self._mailbox.submit(volley.waiting.popleft())

    def _answer(self, task: Asked[Any], handed: Handed) -> wire.Done | None:
        """Wait for the answer to a task, in the thread that has asked; None if it is not its."""
        done = self.shortcut.answer(handed)
        if done is None:
            self._mailbox.wake()  # of what it does not know it would not be woken
            return None
        if not (handed.settled or task.claim()):
            return None
        _, began, ended, _, _, data = done
        span = task, began, ended, False
        moved = [handed.entry.moved(data)] if self._recorder.pictured else None
        self._recorder.tasks_ended(handed.worker.pid, [span], moved, handed.settled)
        return done

    def recall(self, task: Task[Any], take_back: Callable[[int], None]) -> bool:
        """Take back a task from the inbox of its worker; tell whether it was in there.

        It may have been sent again by now: then the caller looks once more. The supervisor is
        told to ``take_back`` what was in there besides.
        """
        entry = self._ledger.get(task.number)
        handed = self.shortcut.find(task.number) if entry is None else None
        number = handed.number if handed else entry.worker if entry else None
        worker = None if number is None else self._crew.get(number)
        if worker is None or number is None:
            return False
        return worker.inbox.recall(
            task.number, lambda: self._mailbox.tell(lambda: take_back(number)), self._waits_again
        )

    def _waits_again(self, number: int) -> None:
        entry = self._ledger.get(number)
        if entry is None and (handed := self.shortcut.find(number)):
            entry = handed.entry
        if entry is not None:
            entry.task.wait_again()

    # the supervisor thread

    def take_in(self) -> None:
        """Take in what callers have submitted, and what they have sent to idle workers."""
        self._submitted(self._mailbox.submissions())
        for handed in self.shortcut.handed():
            entry, number = handed.entry, handed.number
            task = entry.task
            if not handed.receipt and task.cancelled():  # while its caller held it back
                continue
            if not handed.receipt or number not in self._crew:
                task.wait_again()
                self._submitted([entry])
                continue
            self._recorder.submitted += 1
            self._ledger.add([entry])
            priority = task.options.priority
            self._schedule.handed(number, task.number, priority=priority, short=entry.short)
            self._ledger.sent([entry], number, handed.worker.pid)
            if handed.asked:
                handed.worker.inbox.wants(True)

    def _submitted(self, entries: Sequence[Entry]) -> None:
        self._recorder.submitted += len(entries)
        self._ledger.add(entries)
        if self.stopped:  # they were being packed meanwhile
            self._ledger.settle_all(STOPPED)
            return
        self._verdict.queue(entries)

    def offer(self) -> None:
        """Let callers have the workers that have nothing to do."""
        if descriptors.HAS_PACKETS:  # of what is in a stream the supervisor keeps count
            for number in self._schedule.idle_workers():
                worker = self._crew[number]
                worker.inbox.wants(False)
                self.shortcut.offer(number, worker)
