"""What a forked child must let go of.

A fork copies every descriptor, and a copy that nobody knows of keeps a pipe from
ending and a lock from being freed. So each object that owns descriptors (or counts
what its process holds) is known here, and the child tells it what happened.

`guard` is held while a descriptor is made and made known, and by every fork: no
child can be born in between. Nothing is registered before the first use.
"""

from __future__ import annotations

import functools
import os
import threading
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol, cast

from mpkit import _platform

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

guard = threading.RLock()

_known: weakref.WeakSet[Inherited] = weakref.WeakSet()
_installed = False
#: While a `multiprocessing.Process` is being forked: the ids of what its arguments hold.
_travelling: set[int] = set()
_process: Any = None


class Inherited(Protocol):
    """Something of which a forked child gets a copy that it must not use."""

    def _before_fork(self) -> None:
        """Decide, in the parent, what the child may keep."""

    def _after_fork_in_parent(self) -> None:
        """Let go of what the child keeps."""

    def _after_fork_in_child(self) -> None:
        """Close what the child must not have; start from nothing."""


class Bearer:
    """Something with parts that travel with it to a forked process."""

    def _carried(self) -> list[object]:
        """Return these parts."""
        raise NotImplementedError


def know(thing: Inherited) -> None:
    """Have ``thing`` told of every fork from now on. The caller holds `guard`."""
    global _installed
    if not _installed:
        _installed = True
        os.register_at_fork(
            before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child
        )
    _known.add(thing)


def travels(thing: object) -> bool:
    """Tell, inside a handler, whether ``thing`` is among the arguments of the new process."""
    return id(thing) in _travelling


def stay(*things: object) -> None:
    """Have ``things`` not travel, whatever the arguments of the new process are."""
    _travelling.difference_update(id(thing) for thing in things)


def traveller() -> Any:
    """Return, inside a handler, the `multiprocessing.Process` that is forked; or None."""
    return _process


def _before() -> None:
    global _process
    guard.acquire()
    _travelling.clear()
    _process = process = _platform.process_being_forked()
    if process is not None:
        _travelling.update(_contents(vars(process)))
    for thing in list(_known):
        thing._before_fork()


def _after_in_parent() -> None:
    try:
        for thing in list(_known):
            thing._after_fork_in_parent()
    finally:
        _done()


def _after_in_child() -> None:
    try:
        for thing in list(_known):
            thing._after_fork_in_child()
    finally:
        _done()


def _done() -> None:
    global _process
    _process = None
    guard.release()


#: Longer containers are not looked into: a fork must not take seconds to find a channel.
_LONGEST = 1000


def _contents(root: Any) -> set[int]:
    """Return the ids of what is in ``root``, in its containers, and in theirs."""
    found: set[int] = set()
    left: deque[Any] = deque([root])
    while left:
        thing = left.pop()
        if id(thing) in found:
            continue
        found.add(id(thing))
        left.extend(_inside(thing))
    return found


def _inside(thing: Any) -> Iterable[Any]:
    if isinstance(thing, Bearer):
        return thing._carried()
    if isinstance(thing, functools.partial):
        return cast("tuple[Any, ...]", (thing.args, thing.keywords))
    if isinstance(thing, dict):
        thing = thing.values()  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    elif not isinstance(thing, (tuple, list, set, frozenset, deque)):
        return ()
    container = cast("Collection[Any]", thing)
    return container if len(container) <= _LONGEST else ()
