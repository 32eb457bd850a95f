"""`Feeds`: what a pool takes calls from, besides those who submit them one by one.

An `imap` submits more of its input as its results are consumed, and a map in slices more of
its chunks as those end. A pool that is closed is over when these are, too.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable


class Feed(Protocol):
    """Something that submits more as its tasks end."""

    def lift(self) -> None:
        """Submit all that there is, since the pool may end before it is asked for."""

    def halt(self) -> None:
        """Submit no more of what may be endless."""


class Feeds:
    """What a backend takes calls from, until it ends. Any thread may use it."""

    def __init__(self) -> None:
        # Re-entrant: what is garbage may leave at any time.
        self._lock = threading.RLock()
        self._feeds: set[Feed] = set()
        self._over: Callable[[], None] | None = None

    def __bool__(self) -> bool:
        return bool(self._feeds)

    def enter(self, feed: Feed) -> None:
        """Begin to take from an input."""
        with self._lock:
            self._feeds.add(feed)

    def leave(self, feed: Feed) -> None:
        """An input has ended. Again is fine."""
        with self._lock:
            last = self._feeds == {feed}
            self._feeds.discard(feed)
            over = self._over
        if last and over is not None:
            over()

    def close(self, over: Callable[[], None]) -> None:
        """Take from no other inputs, and all from these; then call ``over``."""
        with self._lock:
            self._over = over
            feeds = list(self._feeds)
        for feed in feeds:
            feed.lift()
        if not feeds:
            over()

    def stop(self) -> None:
        """Take no more from any."""
        with self._lock:
            feeds = list(self._feeds)
        for feed in feeds:
            feed.halt()
