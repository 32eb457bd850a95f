"""What a worker does with a slice of a chunk: as many of its items as there is time for."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

#: Seconds that a worker goes on with a chunk before it reports, after which what is left can
#: go elsewhere. (To report and to begin with something else takes some 0.2 ms.)
SLICE_SECONDS: Final = 0.01

#: How many items are done before it looks at the clock again: what takes so many seconds by the
#: last ones. But the next ones may take longer than those: so no more than were done, or
#: `_FEW`. (To look costs as much as forty of the shortest items.)
_STRIDE_SECONDS: Final = SLICE_SECONDS / 20
_FEW: Final = 64
MANY: Final = 4096


#: Which items of a chunk: from the first of these, up to the second or until so many seconds have
#: passed; and after how many items the clock is looked at, at the latest.
Bounds = tuple[int, int, float, int]


def run_slice(
    fn: Callable[..., Any], chunk: Sequence[Any], star: bool, bounds: Bounds
) -> tuple[list[Any], float]:
    """Call ``fn`` with items of a chunk, and at least with one.

    Returns the results of those for which there was time, and the seconds that one took.
    """
    began = time.monotonic()
    values = call_with_each(fn, _pieces(chunk, bounds), star)
    return values, (time.monotonic() - began) / len(values)


def _pieces(chunk: Sequence[Any], bounds: Bounds) -> Iterator[Sequence[Any]]:
    """Yield the items of a chunk in pieces, as long as there is time: the next when one is done."""
    start, stop, seconds, most = bounds
    place, stride = start, 1
    before = time.monotonic()
    end = before + seconds
    while True:
        piece = chunk[place : min(place + stride, stop)]
        yield piece
        now = time.monotonic()
        few, took = len(piece), now - before
        place += few
        if place == stop or now >= end:
            return
        # Without min() and max(), each of which takes as long as five of the shortest items.
        done = place - start
        stride = 4 * few if few < _FEW // 4 else _FEW if done < _FEW else done
        if stride > most:
            stride = most
        if took * stride > _STRIDE_SECONDS * few:
            stride = int(_STRIDE_SECONDS * few / took) or 1
        before = now


def call_with_each(
    fn: Callable[..., Any], pieces: Iterable[Sequence[Any]], star: bool
) -> list[Any]:
    """Return the results of ``fn`` for all items."""
    # Not by map(), which takes a StopIteration of the function for the end of the items. And into
    # one list: to have one of each piece grow takes as long as a tenth of the shortest items.
    if star:
        return [fn(*item) for piece in pieces for item in piece]
    return [fn(item) for piece in pieces for item in piece]
