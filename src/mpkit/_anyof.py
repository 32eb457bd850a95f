"""`wait`: for any of several things, of whatever kinds.

Apart from `_wait`, on which it rests, as it knows of futures: to import those takes a
worker longer than all that it has to know of waiting.
"""

from __future__ import annotations

import contextlib
import functools
import os
import weakref
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

from mpkit import _fork, _wait
from mpkit._wait import Deadline

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

#: What `wait` takes, and returns.
T = TypeVar("T", bound="Waitable | Future[Any]")


@runtime_checkable
class Waitable(Protocol):
    """What `wait` takes, besides futures: a Signal, a Channel or a Job."""

    def _ready(self) -> bool:
        """Tell, without blocking, whether there is something to take."""
        ...

    def _watched(self) -> Sequence[int]:
        """Return descriptors of which one becomes readable when `_ready` may be true.

        None, if it is known to be: then it is asked without waiting for anything.
        """
        ...


def wait(*things: T, timeout: float | None = None) -> list[T]:
    """Block until at least one of ``things`` is ready, and return all that are, in order.

    For any mix of `Signal` (ready while it is set), `Channel` (a message can be
    received, or its end), `Job` (it has ended) and `Task` or any other
    `concurrent.futures.Future` (it is done). One system call waits for all of them;
    nothing is polled and no thread is started.

    Args:
        things: what to wait for.
        timeout: seconds to wait; None waits for ever, 0 only looks.

    Returns:
        Those that are ready; an empty list if none was in time.

    Raises:
        TypeError: one of the things cannot be waited for.
        ChannelClosed: one of them is a channel's end that was closed or, as
            `ChannelMoved`, given away. (That another thread waits for an end here does not
                keep it from moving.)
        OSError: no descriptors are left for that (Signals, Jobs and futures take some).

    Example:
        >>> import mpkit
        >>> early, late = mpkit.Signal(), mpkit.Signal()
        >>> early.set()
        >>> mpkit.wait(early, late, timeout=5) == [early]
        True

    """
    # One of each type: what a protocol asks of each thing takes longer than all the rest.
    kinds: dict[type, object] = {type(thing): thing for thing in things}
    for thing in kinds.values():
        # A class has the methods that its objects have.
        if isinstance(thing, type) or not isinstance(thing, (Future, Waitable)):
            raise TypeError(f"wait() takes Signals, Channels, Jobs and Tasks, not {thing!r}")
    deadline = Deadline(timeout)
    if not things:
        return []
    bell: _Bell | None = None
    try:
        while True:
            last = deadline.passed()  # before the look: a signal handler may come between
            # Anew each time: what a job watches changes once it has said its last.
            watched = [_watched(thing, bell) for thing in things]
            rung = _rung(watched, 0.0 if last else deadline.left())
            # Of hundreds of things only those that rang are asked.
            ready = [
                thing
                for thing, fds in zip(things, watched, strict=True)
                if (not fds or not rung.isdisjoint(fds)) and _is_ready(thing)
            ]
            if ready or last:
                return ready
            if bell is None and (futures := [it for it in things if isinstance(it, Future)]):
                bell = _Bell()  # only now: it takes a pipe
                bell.hang(futures)
    finally:
        if bell:
            bell.take_down()


def _rung(watched: Iterable[Sequence[int]], timeout: float | None) -> set[int]:
    """Poll them all; without blocking if there is one that watches nothing any more."""
    fds = [fd for each in watched for fd in each]
    return set(_wait.poll(fds, timeout if all(watched) else 0.0))


def _is_ready(thing: Any) -> bool:
    return thing.done() if isinstance(thing, Future) else thing._ready()


def _watched(thing: Waitable | Future[Any], bell: _Bell | None) -> Sequence[int]:
    if not isinstance(thing, Future):
        return thing._watched()
    return bell.fds if bell else ()


class _Bell:
    """A pipe, for futures to ring when they are done, since they have no descriptor.

    A call of `wait` has one for all its futures. Nobody closes it: that happens when
    neither the call nor a thread that is just ringing refers to it any more.
    """

    def __init__(self) -> None:
        self._pipe = _fork.Descriptors()
        with _fork.guard:
            self._pipe.keep(os.pipe())
        os.set_blocking(self._pipe[1], False)  # thousands may ring
        self.fds = self._pipe[:1]
        self._hung: list[list[_Bell]] = []

    def hang(self, futures: Iterable[Future[Any]]) -> None:
        """Have each of them ring it."""
        for future in futures:
            bells = _bells_of(future)
            self._hung.append(bells)
            bells.append(self)
            if future.done():  # perhaps since before that, and then it does not ring
                self.ring()

    def ring(self) -> None:
        """Make it readable."""
        with contextlib.suppress(BlockingIOError):  # it is full: so it is readable
            for writer in self._pipe[1:]:  # none in a forked child
                os.write(writer, b"!")

    def take_down(self) -> None:
        """Have no future ring it any more."""
        for bells in self._hung:
            with contextlib.suppress(ValueError):  # an interruption kept it from being hung
                bells.remove(self)


#: Those that each future rings. Its callback refers to the list, since no callback can
#: be taken off a future: so a future that is waited for again and again has but one.
_bells: weakref.WeakKeyDictionary[Future[Any], list[_Bell]] = weakref.WeakKeyDictionary()


def _bells_of(future: Future[Any]) -> list[_Bell]:
    bells = _bells.get(future)
    if bells is None:
        bells = []
        future.add_done_callback(functools.partial(_ring, bells))
        # Last: what is in there will be rung, whoever is interrupted. (Of two threads that
        # come here at once each has its own list and callback, and the later one's is kept.)
        _bells[future] = bells
    return bells


def _ring(bells: list[_Bell], _: Future[Any]) -> None:
    for bell in bells.copy():
        bell.ring()
