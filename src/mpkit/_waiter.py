"""Waiting for a slot: who wakes whom, and why no wake-up is ever lost.

Who waits makes an entry at the end of the queue (`_queue`) that says which bell to ring
(`_bells`), and then mostly goes on by what a poll tells him. The rules:

1. *Joining* is done under a lock, so entries appear in the order of their tickets: nobody
   ever turns up in front of one who already waits.
2. Who is **not first** watches his own bell, and the process of the one before him
   (`_presence`: whether it dies, or execs another program).
3. Who is **first** notes that in the file, then watches his own bell, and the processes of
   all who hold a slot. He looks at who holds what *after* that: every slot is then either
   free, and he tries again, or held by somebody whose death he will see.
4. Who *leaves* the queue, for whatever reason, clears his entry, and then rings the one
   after him.
5. Who *releases* a slot unlocks it, and then rings who is noted as the first, if somebody
   waits and has not left.
6. Who wakes silences his bell first, and then looks at everything anew. (Unless he takes a
   slot and leaves.)

Why this suffices, whoever is killed wherever. A slot that is free with the first one
asleep would be a lost wake-up. A slot becomes free because its holder

* died: the first one watches him (3);
* unlocked it, and was killed before he rang: the first one watches him still, for he
  held the slot when it was last looked at. (Had he taken it after that look, from one
  who was watched: that one released it, so has rung or has died, by this same argument.)
* unlocked it and rang. If the one who is first now had noted that before the unlocking,
  the ring is for him. If not, he looks (3) after it, and finds the slot free. So it
  does not matter who else is rung, nor whether he lives.

And becoming first is never missed, since the one before either rings (4) or dies (2).
If somebody is killed while he joins, then nobody is behind him yet: joining ends with
the lock of the entry, which ends with its process.
tests/model checks this argument in all orders of events.

Where there is one slot only, and a thread waits for it for ever, the one who is first
may leave all that to the kernel, which gives him the lock when it is free (whether it was
unlocked or its holder died): that is quicker by half. Then he notes that he needs no bell.
With several slots, a timeout or an event loop there is no such call; and if a thread of his
own process has the slot, he would get its lock at once.

The one who is first may be overtaken by somebody who comes by at the right moment, which
saves both the switch between processes. But when he has been the first for `HUNGRY_AFTER`,
then who comes has to queue up.

But for that wait in the kernel, `Waiter` never blocks: it says what to watch. So threads
and asyncio tasks differ in the one line that polls.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from mpkit import _fork, _wait
from mpkit._queue import Place

if TYPE_CHECKING:
    from mpkit._bells import Bell
    from mpkit._slots import Owner, Slots


class Waiter:
    """One thread or task in the queue for a slot, until it leaves.

    ``watched`` and ``patience`` say what to poll, and for how many seconds at most, when
    `served` has returned False. If it ``may_block``, then `served` itself may wait for ever.
    """

    def __init__(self, slots: Slots, owner: Owner, *, may_block: bool) -> None:
        self._slots = slots
        self._owner = owner
        self._may_block = may_block
        self._place = Place()
        self._bell: Bell | None = None
        self._first = False
        self._held_before = slots.holds(owner)
        self.watched: list[int] = []
        self.patience: float | None = None

    def served(self) -> bool:
        """Take a slot if it is our turn and one is free; else set what to watch."""
        # To try before silencing the bell saves time when it rang, and does no harm: we
        # leave then, and look at nothing.
        if self._first and self._take():
            return True
        bell = self._joined()
        bell.drain()
        while not self._is_behind(bell):
            if self._take():
                return True
            if self._may_block and self._sleep(bell):
                return True
            if self._watch_holders(bell):
                return False
        return False

    def _take(self) -> bool:
        return self._slots.take(self._owner)

    def _sleep(self, bell: Bell) -> bool:
        """Leave it to the kernel to give us the slot, if that can be."""
        if self._slots.take_when_free(self._owner):
            return True
        self._slots.listen(bell)
        return False

    def _joined(self) -> Bell:
        # The place may be lost because there is another file, or we were forked.
        if self._bell is None or not self._slots.in_line(self._place):
            self.leave()
            self._bell = self._slots.join(self._place)
        return self._bell

    def _is_behind(self, bell: Bell) -> bool:
        """Tell whether somebody is before us, and watch the nearest one."""
        if self._first:
            return False  # nobody joins before us: who is first stays that
        while pid := self._slots.ahead(self._place):
            self._watch_only(bell)
            if pid == os.getpid():
                return True
            # In this order: a process that is watched, and then is ahead, is that one.
            if self._watch(bell, pid) and self._slots.ahead(self._place) == pid:
                return True
        self._slots.lead(self._place, bell)
        self._first = True
        return False

    def _watch_holders(self, bell: Bell) -> bool:
        """Watch all processes that hold slots; False if a slot is free by now."""
        self._watch_only(bell)
        watched: set[int] = set()
        while True:
            holders = self._slots.all_held()
            if holders is None:
                return False
            if holders <= watched:
                return True
            self._watch_only(bell)
            watched = {pid for pid in holders if self._watch(bell, pid)}

    def _watch_only(self, bell: Bell) -> None:
        self.watched = [bell.fd]
        self.patience = None

    def _watch(self, bell: Bell, pid: int) -> bool:
        """Watch a process too; False if it is gone."""
        fds = bell.watched.get(pid, [])
        if fds and _wait.poll(fds, 0):  # it is gone; the pid may belong to another one now
            bell.watch_no_more(pid)
            fds = []
        if not fds:
            with _fork.guard:  # or a child could be born with it that does not know of it
                try:
                    fds = self._slots.watch(pid) if pid > 0 else []
                except ProcessLookupError:
                    return False
                bell.watched[pid] = fds
            if _wait.poll(fds, 0):
                return False
        if len(fds) < 2:  # the system's, or another container's process: look again
            self.patience = _wait.LOOK_AGAIN
        self.watched += fds
        return True

    def refuse(self) -> None:
        """Give the slot back that nobody will hear of."""
        while self._slots.holds(self._owner) > self._held_before:
            self._slots.give(self._owner)

    def leave(self) -> None:
        """Leave the queue; again is fine."""
        if self._place.ticket:
            self._slots.leave(self._place, self._bell)
        self._place, self._bell, self._first = Place(), None, False
