"""`Lookahead`: how far an imap pulls its input ahead of what is consumed.

What was pulled and is not consumed takes memory. But of items that take microseconds few last
only for as long as threads take to take turns, and most of the time goes into that.
"""

from __future__ import annotations

import sys
from typing import Final

#: Chunks per worker that may be pulled from the input and not yet be consumed. Enough
#: for packets of short tasks; what bounds the memory of an endless input.
AHEAD = 32
#: So many times as many, where they are consumed fast. (At 5 µs each they last for some ms, and
#: what is pickled as fast as that is small. With more, nothing was gained.)
MOST_TIMES: Final = 16
#: Seconds in which half of them are to be consumed, at the least. (A turn takes some 0.05 ms.)
LAST: Final = 0.005
#: Of them so many are taken at a time, if they are there: to take turns costs more.
_AT_A_TIME: Final = 64


class Lookahead:
    """How many chunks may be pulled and not be consumed. Anyone may read it; one at a time writes."""

    def __init__(self, least: int, round_trip: float = 0.0) -> None:
        """``round_trip``: seconds that a chunk and its results travel, if that is longer than `LAST`."""
        self._least = self._total = least
        self._last = max(LAST, round_trip)
        self._share()

    def _share(self) -> None:
        #: How many are taken at a time. They are not consumed by then, but in somebody's hands.
        self.at_a_time: int = min(_AT_A_TIME, -(-self._total // 4))
        #: How many may be pulled that were not taken.
        self.bound: int = self._total - self.at_a_time

    def half_consumed(self, seconds: float) -> None:
        """Half of them were consumed, in so many seconds: look further ahead, or less far."""
        total = self._total
        if seconds < self._last:
            self._total = min(2 * total, MOST_TIMES * self._least)
        elif seconds > 4 * self._last:
            self._total = max(total // 2, self._least)
        if self._total != total and self.bound != sys.maxsize:
            self._share()

    def lift(self) -> None:
        """Let all be pulled, from now on."""
        self.bound = sys.maxsize
