"""What maps send to workers: several items of one function at a time."""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, Any, Final

from mpkit import _outcome
from mpkit._pool import packing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from mpkit._outcome import Raised


def split(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Yield the items in lists of ``size``; the last may be shorter."""
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk


def default_size(items: int, workers: int) -> int:
    """Return multiprocessing.Pool's choice: four chunks for each worker."""
    return max(1, -(-items // (workers * 4)))


#: Seconds that a worker goes on with a chunk before it reports, after which what is left can
#: go elsewhere. (To report and to begin with something else takes some 0.2 ms.)
SLICE_SECONDS: Final = 0.01

#: Items, and seconds of them, after which a worker looks at the clock. (To look costs as much as
#: the shortest item. Items are seldom a hundred times as long as those just before them.)
_STRIDE: Final = 64
_STRIDE_SECONDS: Final = SLICE_SECONDS / 20


def run_all(fn: Callable[..., Any], chunk: Sequence[Any], star: bool) -> tuple[list[Any], float]:
    """Call ``fn`` with each item; what it raises ends the chunk. Runs in a worker.

    Returns the results, and 0 for the seconds that one takes, of which nobody asks then.
    """
    return _call_with_each(fn, chunk, star), 0.0


def run_slice(packed: bytes, start: int, stop: int, seconds: float) -> tuple[list[Any], float]:
    """As `run_all`, for items of a chunk; ends after so many ``seconds``. Runs in a worker.

    Returns the results for which there was time, one at least, and the seconds that one took.
    """
    try:
        fn, (chunk, star), _ = packing.unpack(packed, [])
    except BaseException as error:
        error.add_note("(raised while a worker unpickled the items of a map)")
        raise
    values: list[Any] = []
    stride, began = 1, time.monotonic()
    before = began
    while True:
        few = chunk[start : min(start + stride, stop)]
        values += _call_with_each(fn, few, star)
        start += len(few)
        now = time.monotonic()
        if start >= stop or now >= began + seconds:
            return values, (now - began) / len(values)
        each = (now - before) / len(few)
        before = now
        stride = min(2 * stride, _STRIDE, max(1, int(_STRIDE_SECONDS / max(each, 1e-9))))


def _call_with_each(fn: Callable[..., Any], items: Sequence[Any], star: bool) -> list[Any]:
    if star:
        return [fn(*item) for item in items]
    return [fn(item) for item in items]


def run_each(fn: Callable[[Any], Any], chunk: Sequence[Any]) -> list[tuple[bool, Any]]:
    """Call ``fn`` with each item, and tell for each if it returned. Runs in a worker."""
    return [_run_one(fn, item) for item in chunk]


def _run_one(fn: Callable[[Any], Any], item: Any) -> tuple[bool, Any | Raised]:
    try:
        return True, fn(item)
    except BaseException as error:  # noqa: BLE001  to be raised where the results are read
        return False, _outcome.Raised.of(_outcome.describe(fn), error, skip_frames=1)
