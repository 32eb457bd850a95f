"""Waiting for a slot: who wakes whom, and why no wake-up is ever lost.

Who waits hangs up a bell (`_bells`) at the end of the queue, and goes on only by what a
poll tells him. The rules:

1. *Joining* is done under a lock, so bells appear in the order of their tickets: nobody
   ever turns up in front of one who already waits.
2. Who is **not first** watches his own bell, and the process of the one before him.
3. Who is **first** watches his own bell, and the processes of all who hold a slot. He
   looks at who holds what *after* he has begun to watch: every slot is then either free,
   and he tries again, or held by somebody whose death he will see.
4. Who *leaves* the queue, for whatever reason, takes his bell down, and then rings the
   one after him.
5. Who *releases* a slot unlocks it, and then rings the first one, if somebody waits.
6. Who wakes silences his bell first, and then looks at everything anew.

Why this suffices, whoever is killed wherever. A slot that is free with the first one
asleep would be a lost wake-up. A slot becomes free because its holder

* died: the first one watches him (3);
* unlocked it, and was killed before he rang: the first one watches him still, for he
  held the slot when it was last looked at. (Had he taken it after that look, from one
  who was watched: that one released it, so has rung or has died, by this same argument.)
* unlocked it and rang: a bell that stood when he listed the queue, so before (6) looks
  again. If that bell's owner was killed, or is killed before he acts, then the one after
  him watches his process (2), and is now first. If the owner was leaving for another
  reason, he rings the next one (4), or is killed before he does, as just said.

And becoming first is never missed, since the one before either rings (4) or dies (2).
If somebody is killed while he joins, then nobody is behind him yet: joining ends with
the bell hung up and open. A bell that nobody has open is a dead one's, whatever process
has his pid now.

The one who is first may be overtaken by somebody who comes by at the right moment, which
saves both the switch between processes. When that has gone on for `HUNGRY_AFTER`, he
says so, and who comes from then on has to queue up.

`Waiter` never blocks: it says what to watch. So threads and asyncio tasks differ in the
one line that polls.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from mpkit import _fork, _platform, _wait
from mpkit._bells import drain, name_for, ticket_and_owner

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from mpkit._slots import Owner, Slots

#: How long, in seconds, the first one in the queue lets himself be overtaken. Some hundred
#: times what it costs to hand a slot over, so that doing that in order costs little.
HUNGRY_AFTER = 0.005


class Waiter:
    """One thread or task in the queue for a slot; in it while inside ``with``.

    ``watched`` and ``patience`` say what to poll, and for how many seconds at most, when
    `served` has returned False.
    """

    def __init__(self, slots: Slots, owner: Owner) -> None:
        self._slots = slots
        self._owner = owner
        self._name = ""
        self._bell = -1
        self._pidfds: dict[int, int] = {}
        self._first_since: float | None = None
        self._hungry = False
        self._served = False
        self.watched: list[int] = []
        self.patience: float | None = None

    def __enter__(self) -> Self:
        return self

    def served(self) -> bool:
        """Take a slot if it is our turn and one is free; else set what to watch."""
        if self._bell < 0:
            self._join()
        drain(self._bell)
        while not self._is_behind():
            if self._slots.take(self._owner):
                self._served = True
                return True
            self._grow_hungry()
            if self._watch_holders():
                return False
        return False

    def _join(self) -> None:
        # In this order, as everywhere: a mutex of slots first, then the guard.
        with self._slots.joining(), _fork.guard:
            _fork.know(self)
            # Ours before it is there: a bell whose owner does not know of it would keep
            # all behind it waiting for as long as this process lives.
            self._name = name_for(self._slots.next_ticket(), os.getpid())
            self._bell = self._slots.bells.hang(self._name)

    def _is_behind(self) -> bool:
        """Tell whether somebody is before us, and watch the nearest one."""
        if self._first_since is not None:
            return False  # nobody joins before us: who is first stays that
        ahead = [name for name in self._slots.bells.names() if name < self._name]
        for name in reversed(ahead):
            self._watch_only_bell()
            if self._watch_owner(name):
                return True
            self._slots.bells.take_down(name)
        self._first_since = time.monotonic()
        self._slots.lead(self._name)
        return False

    def _watch_owner(self, name: str) -> bool:
        """Watch who hung up that bell; False if he is gone."""
        bells, pid = self._slots.bells, ticket_and_owner(name)[1]
        if pid == os.getpid():
            return name in bells.own
        # In this order: a process that is watched and then has the bell is its owner.
        return self._watch(pid) and bells.hangs(name)

    def _watch_holders(self) -> bool:
        """Watch all processes that hold slots; False if a slot is free by now."""
        self._watch_only_bell()
        watched: set[int] = set()
        while True:
            holders = self._slots.all_held()
            if holders is None:
                return False
            if holders <= watched:
                return True
            self._watch_only_bell()
            watched = {pid for pid in holders if self._watch(pid)}

    def _watch_only_bell(self) -> None:
        self.watched = [self._bell]
        self.patience = None

    def _watch(self, pid: int) -> bool:
        """Watch a process too; False if it is gone."""
        fd = self._pidfds.get(pid)
        if fd is not None and _wait.poll((fd,), 0):
            os.close(self._pidfds.pop(pid))  # it died; the pid may belong to another one now
            fd = None
        if fd is None:
            with _fork.guard:  # or a child could be born with it that does not know of it
                try:
                    fd = _platform.open_pidfd(pid) if pid > 0 else None
                except ProcessLookupError:
                    return False
                if fd is not None:
                    self._pidfds[pid] = fd
            if fd is None:  # the system, or another container's process: look again
                self.patience = _wait.LOOK_AGAIN
                return True
            if _wait.poll((fd,), 0):
                return False
        self.watched.append(fd)
        return True

    def _grow_hungry(self) -> None:
        if self._first_since is not None:
            self._hungry = time.monotonic() - self._first_since > HUNGRY_AFTER
            if self._hungry:
                self._slots.hunger()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._leave()
        except BaseException:  # Ctrl-C in the middle: once more, all of it can be repeated
            self._leave()
            self._refuse()
            raise
        if error is not None:
            self._refuse()

    def _refuse(self) -> None:
        """Give the slot back that nobody will hear of."""
        if self._served:
            self._served = False
            self._slots.give(self._owner)

    def _leave(self) -> None:
        if self._name:
            if self._hungry:
                self._slots.hunger(over=True)
            self._slots.bells.take_down(self._name)
            if not self._slots.nobody_after(self._name):
                self._slots.bells.ring(after=self._name)
        self._close()

    def _close(self) -> None:
        self._name = ""
        self._first_since = None
        fds, self._bell, self._pidfds = [self._bell, *self._pidfds.values()], -1, {}
        for fd in fds:
            if fd >= 0:
                os.close(fd)

    def _before_fork(self) -> None:
        """Nothing to decide."""

    def _after_fork_in_parent(self) -> None:
        """Nothing to let go of."""

    def _after_fork_in_child(self) -> None:
        # The bell is our parent's: who still had it open would keep a dead one's alive.
        self._close()
