"""What a forked child must let go of.

A fork copies every descriptor, and a copy that nobody knows of keeps a pipe from
ending and a lock from being freed. So each object that owns descriptors (or counts
what its process holds) is known here, and the child tells it what happened.

`guard` is held while a descriptor is made and made known, and by every fork: no
child can be born in between. Nothing is registered before the first use.
"""

from __future__ import annotations

import _thread
import operator
import os
import signal
import threading
import weakref
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from mpkit._platform import processes, stdlib
from mpkit._reach import Bearer as Bearer
from mpkit._reach import reached_from

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

T = TypeVar("T")

guard = threading.RLock()

_known: weakref.WeakSet[Inherited] = weakref.WeakSet()
#: What is told of the fork that is going on; None if none is.
_told: list[Inherited] | None = None
_installed = False
#: While a `multiprocessing.Process` is being forked: the ids of what its arguments hold.
_travelling: set[int] = set()
_process: Any = None
#: Which children this thread had before the fork; None if that is not known, or does not matter.
_children: set[int] | None = None
#: Which signals this thread had blocked before the fork.
_mask: set[int] = set()
_ALL: Final = stdlib.valid_signals()

# In C: each function of Python's that a new child calls takes it some ten microseconds, and most of
# that is for pages that it shares with its parent no longer.
_before_it = operator.attrgetter("_before_fork")
_in_parent = operator.attrgetter("_after_fork_in_parent")
_in_child = operator.attrgetter("_after_fork_in_child")


class Inherited(Protocol):
    """Something of which a forked child gets a copy that it must not use."""

    def _before_fork(self) -> None:
        """Decide, in the parent, what the child may keep."""

    def _after_fork_in_parent(self) -> None:
        """Let go of what the child keeps."""

    def _after_fork_in_child(self) -> None:
        """Close what the child must not have; start from nothing."""


class Descriptors(list[int]):
    """Descriptors that are held for a moment, of which no forked child keeps a copy.

    As a channel's end is on its way out of this process or into it: its copy in a child
    would hide the death of whoever gets it. One that was given away is -1 in the list.
    It closes what is left when it is garbage. A signal handler may raise between any two
    calls, so each step that must not be torn is one call, or has none.
    """

    __slots__ = ("__weakref__",)

    def keep(self, fds: Iterable[int]) -> None:
        """Own ``fds`` from now on. They were made since the caller took `guard`."""
        self.extend(fds)
        know(self)

    def keep_copy(self, fd: int) -> int:
        """Return a copy of ``fd``, owned from now on."""
        with guard:
            know(self)
            self += map(os.dup, (fd,))
            return self[-1]

    def give(self, index: int, take: Callable[[int], T]) -> T:
        """Hand one over to ``take``, which owns it unless it raises; return what it returns."""
        taken: list[T] = []
        with guard:
            try:
                taken += map(take, (self[index],))
            finally:
                if taken:
                    self[index] = -1
        return taken[0]

    def close(self) -> None:
        """Close those that were not given away, and forget all. More than once is fine."""
        if self:
            with guard:  # a child that is forked between the two would keep its copies
                self._close()

    def _close(self) -> None:
        # Forgotten first: what is closed twice may be somebody else's the second time.
        while self:
            fd = self[-1]
            del self[-1]
            if fd >= 0:
                os.close(fd)

    def __hash__(self) -> int:  # type: ignore[override]
        return id(self)

    def __del__(self) -> None:
        # Without the guard: this runs anywhere, and whoever has it may wait for what we hold.
        self._close()

    def _before_fork(self) -> None:
        """Nothing to decide: none of these travels."""

    def _after_fork_in_parent(self) -> None:
        """Nothing to let go of."""

    def _after_fork_in_child(self) -> None:
        self.close()


def owned(fds: list[int]) -> Descriptors:
    """Return ``fds`` as `Descriptors`, which own them; as they are if they are that already."""
    if isinstance(fds, Descriptors):
        return fds
    with guard:
        descriptors = Descriptors()
        descriptors.keep(fds)
    return descriptors


def know(thing: Inherited) -> None:
    """Have ``thing`` told of every fork from now on. The caller holds `guard`."""
    global _installed
    if not _installed:
        _installed = True
        os.register_at_fork(
            before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child
        )
    _known.add(thing)
    if _told is not None:  # somebody else's handler has made it, in this very fork
        _told.append(thing)


def forget(*things: Inherited) -> None:
    """Tell ``things`` of no fork any more: they have nothing that a child could get."""
    with guard:
        for thing in things:
            _known.discard(thing)


def travels(thing: object) -> bool:
    """Tell, inside a handler, whether ``thing`` is among the arguments of the new process."""
    return id(thing) in _travelling


def give_away(process: Any, things: tuple[object, ...]) -> None:
    """Have a process that is to be started get just these ``things`` if it is forked.

    They are not looked for then among its arguments, which hold them. All that is known of them is
    let go of here, whether the process comes to be or not: that is not looked at either.
    """
    vars(process)[_GIVEN] = things


#: Where a process has what it is given.
_GIVEN: Final = "_mpkit_given_away"


def stay(*things: object) -> None:
    """Have ``things`` not travel, whatever the arguments of the new process are."""
    _travelling.difference_update(id(thing) for thing in things)


def traveller() -> Any:
    """Return, inside a handler, the `multiprocessing.Process` that is forked; or None."""
    return _process


def _before() -> None:
    global _mask, _told
    # What a signal handler raises in here is reported and dropped by Python, and the rest
    # of this would be left undone: an end would be nobody's. So signals wait. (Taken by a
    # step of a loop, after which no handler runs.)
    mask: set[int] = set()
    for mask in map(stdlib.signal_mask, (signal.SIG_BLOCK,), (_ALL,)):
        break
    guard.acquire()
    _mask = mask
    _told = list(_known)
    _do(_look_who_travels, *map(_before_it, _told))


def _look_who_travels() -> None:
    global _process, _children
    _travelling.clear()
    process: object = stdlib.process_being_forked()
    _process = process
    _children = None
    if process is not None:
        told = vars(process).pop(_GIVEN, None)
        _travelling.update(reached_from(vars(process)) if told is None else map(id, told))
        if told is None:
            _children = processes.children()


def _after_in_parent() -> None:
    try:
        _do(_look_whether_it_failed, *map(_in_parent, _told or ()))
    finally:
        _done()


def _look_whether_it_failed() -> None:
    # Python calls us also if the fork has failed. Then nobody got anything.
    if _travelling and _children is not None and processes.children() == _children:
        _travelling.clear()


def _after_in_child() -> None:
    try:
        _do(*map(_in_child, _told or ()))
    finally:
        _done()


def _do(*steps: Callable[[], None]) -> None:
    """Do all steps, whatever one raises: a handler's, of a signal that another thread got."""
    errors: list[BaseException] = []
    for step in steps:
        try:
            step()
        except BaseException as error:  # noqa: BLE001  it is raised in the end
            errors.append(error)
            step()  # each comes to the same when it is done again
    if errors:
        raise errors[0]


def _done() -> None:
    global _process, _told
    _process = _told = None
    mask = _mask
    guard.release()
    try:
        stdlib.signal_mask(signal.SIG_SETMASK, mask)
    except KeyboardInterrupt:
        # Of a Ctrl-C that has waited. Once more, for when Python has returned from the fork
        # (or calls the next one's handler, which drops it); by a step of a loop, or it would
        # be now.
        for _ in map(_thread.interrupt_main, (signal.SIGINT,)):
            break
