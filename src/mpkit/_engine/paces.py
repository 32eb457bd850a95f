"""`Paces`: whether the calls of a function have been short lately."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mpkit._watch.recorder import Span

#: Seconds below which a call is short: what wakes a worker that has slept for long, and its
#: caches with it, costs 0.3 to 0.6 ms of some processor.
SHORT: Final = 0.00025

#: What the calls of a function are taken to last of which nothing is known: so that it needs
#: some twenty that are short until they are expected to be.
UNKNOWN: Final = 8 * SHORT

#: Of how many functions it is known; then all are forgotten, as names may be made up for each call.
_MOST: Final = 1000


class Paces:
    """Notes how long the calls of each function take. `note` is the supervisor's."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    def are_short(self, what: str) -> bool:
        """Tell whether calls of a function are expected to be short. Any thread may ask."""
        return self._seconds.get(what, UNKNOWN) < SHORT

    def note(self, spans: Iterable[Span]) -> None:
        """Tasks have ended."""
        seconds = self._seconds
        if len(seconds) > _MOST:
            seconds.clear()
        for task, began, ended, _ in spans:
            what = task.what
            known = seconds.get(what, UNKNOWN)
            seconds[what] = known + (ended - began - known) / 8
