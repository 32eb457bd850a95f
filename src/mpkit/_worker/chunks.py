"""What maps send to workers: several items of one function at a time."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Final

from mpkit import _outcome
from mpkit._describe import describe
from mpkit._worker.slices import call_with_each

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence


def split(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Yield the items in lists of ``size``; the last may be shorter."""
    if size == 1:
        for item in items:
            yield [item]
        return
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk


#: Of chunks with so many items two become one, if the first one has no more bytes than this. (A
#: chunk costs some 0.15 ms besides its items; a thousand of the shortest take 0.1 ms.)
MANY: Final = 1000
SMALL: Final = 16 * 1024


def sliceable(items: Any) -> Sequence[Any]:
    """Return all items as something whose slices are as one expects: a list, say, as it is."""
    whole: Sequence[Any] = items if type(items) in (list, tuple, range) else list(items)
    return whole


def sizes(items: int, size: int) -> list[int]:
    """Return how many items each chunk has, if no more than ``size``."""
    whole, rest = divmod(items, size)
    return [size] * whole + [rest] * (rest > 0)


def joined(sizes: Sequence[int]) -> list[int]:
    """Return the first chunk, with which a worker can begin soonest, and then pairs of them."""
    pairs = itertools.zip_longest(sizes[1::2], sizes[2::2], fillvalue=0)
    return [*sizes[:1], *map(sum, pairs)]


def default_size(items: int, workers: int) -> int:
    """Return multiprocessing.Pool's choice: four chunks for each worker."""
    return max(1, -(-items // (workers * 4)))


def run_all(fn: Callable[..., Any], chunk: Sequence[Any], star: bool) -> tuple[list[Any], float]:
    """Call ``fn`` with each item; what it raises ends the chunk. Runs in a worker.

    Returns the results, and 0 for the seconds that one takes, of which nobody asks.
    """
    return call_with_each(fn, (chunk,), star), 0.0


def run_each(fn: Callable[[Any], Any], chunk: Sequence[Any]) -> list[tuple[bool, Any]]:
    """Call ``fn`` with each item, and tell for each if it returned. Runs in a worker."""
    results: list[tuple[bool, Any]] = []
    for item in chunk:
        try:
            results.append((True, fn(item)))
        except BaseException as error:  # noqa: BLE001  to be raised where the results are read
            raised = _outcome.Raised.of(describe(fn), error, skip_frames=1)
            results.append((False, raised))
    return results
