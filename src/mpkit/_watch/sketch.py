"""How long things took, of any number of them in little memory: counts in buckets of log scale.

A bucket is as wide as an eighth of the power of two that it begins in: what is told of a
percentile is off by a sixteenth of it at most. Which one it is say the first 12 bits of a 32-bit
float. Those of hundreds of values can be had at a time without a loop. So a value is only put on
a list when it comes, which takes 20 ns, and 80 ns more when that list is full.
"""

from __future__ import annotations

import math
import struct
import sys
from array import array
from collections import Counter
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

#: What stays of the second byte of a float, of which the first has its sign and 7 bits of its
#: exponent: the last bit of that, and 3 of its fraction.
_KEPT: Final = 0xF0
_COARSE: Final = bytes(byte & _KEPT for byte in range(256))
#: From one bucket, as a number of 16 bits, to the next.
_STEP: Final = 0x10
#: What has this bit is negative: the clocks of two processes, or of a test. It counts as 0.
_SIGN: Final = 0x8000

#: How many values are put into buckets at a time. (Arbitrary: with fewer it costs more of each.)
AT_A_TIME: Final = 256

#: How many functions are told apart. (Arbitrary; each may take some 20 kB.) Names that are
#: made for each task would take all memory else.
MOST_FUNCTIONS: Final = 200

#: What all others are called together.
OTHERS: Final = "(others)"


class Sketch:
    """How many seconds things took. For who holds a lock on it."""

    __slots__ = "_counts", "_fresh", "_longest", "_total", "note"

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        self._total = 0.0
        self._longest = 0.0
        #: What is in no bucket yet.
        self._fresh: list[float] = []
        #: Take in a value. Who does calls `fold` now and then.
        self.note: Callable[[float], None] = self._fresh.append

    @property
    def full(self) -> bool:
        """Whether it is time to `fold`; a few more do no harm."""
        return len(self._fresh) >= AT_A_TIME

    def fold(self) -> None:
        """Put what was noted into buckets."""
        values = self._fresh[:]
        if not values:
            return
        floats = struct.pack(f"<{len(values)}f", *values)
        halves = bytearray(2 * len(values))
        halves[0::2] = floats[2::4].translate(_COARSE)
        halves[1::2] = floats[3::4]
        buckets = array("H", halves)
        if sys.byteorder == "big":
            buckets.byteswap()
        self._counts.update(buckets)
        self._total += sum(values)
        longest = max(values)
        if longest > self._longest:
            self._longest = longest
        del self._fresh[: len(values)]

    def figures(self) -> Figures:
        """Return what is known of all values until now."""
        self.fold()
        count = self._counts.total()
        p50, p90, p99 = self._percentiles(count, 0.5, 0.9, 0.99)
        return Figures(count, self._total, p50, p90, p99, self._longest)

    def _percentiles(self, count: int, *shares: float) -> list[float]:
        """Return the values that so great shares of all, in order, do not exceed."""
        found: list[float] = []
        seen = 0
        for bucket in sorted(self._counts, key=bounds):
            seen += self._counts[bucket]
            while len(found) < len(shares) and seen >= max(
                1, math.ceil(shares[len(found)] * count)
            ):
                low, high = bounds(bucket)
                found.append(min((low + high) / 2, self._longest))
        return found or [0.0] * len(shares)


class Figures(NamedTuple):
    """What a sketch tells, in seconds but for how many times there were."""

    times: int
    total: float
    p50: float
    p90: float
    p99: float
    longest: float


def bounds(bucket: int) -> tuple[float, float]:
    """Return the least value of a bucket, and of the next one."""
    return (0.0, 0.0) if bucket & _SIGN else (_first_of(bucket), _first_of(bucket + _STEP))


def _first_of(bucket: int) -> float:
    value: float = struct.unpack("=f", struct.pack("=I", bucket << 16))[0]
    return value


class FunctionRecord:
    """What was noted of the runs of one function."""

    __slots__ = "failed", "lost", "name", "runs", "waits"

    def __init__(self, name: str) -> None:
        self.name = name
        self.runs = Sketch()
        self.waits = Sketch()
        self.failed = 0
        self.lost = 0

    def fold(self) -> None:
        """Put what was noted into buckets. To be called when ``runs`` are full."""
        self.runs.fold()
        self.waits.fold()


class Functions:
    """The functions that were run, by name. For who holds a lock on it."""

    def __init__(self) -> None:
        self.records: dict[str, FunctionRecord] = {}

    def of(self, name: str) -> FunctionRecord:
        """Return the record of a function, or that of all for which there is no room."""
        record = self.records.get(name)
        if record is None:
            if len(self.records) >= MOST_FUNCTIONS:
                name = OTHERS
            record = self.records.setdefault(name, FunctionRecord(name))
        return record
