"""What maps send to workers: several items of one function at a time."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from mpkit import _outcome
from mpkit._worker.slices import call_with_each

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


def run_all(fn: Callable[..., Any], chunk: Sequence[Any], star: bool) -> tuple[list[Any], float]:
    """Call ``fn`` with each item; what it raises ends the chunk. Runs in a worker.

    Returns the results, and 0 for the seconds that one takes, of which nobody asks.
    """
    return call_with_each(fn, chunk, star), 0.0


def run_each(fn: Callable[[Any], Any], chunk: Sequence[Any]) -> list[tuple[bool, Any]]:
    """Call ``fn`` with each item, and tell for each if it returned. Runs in a worker."""
    return [_run_one(fn, item) for item in chunk]


def _run_one(fn: Callable[[Any], Any], item: Any) -> tuple[bool, Any | Raised]:
    try:
        return True, fn(item)
    except BaseException as error:  # noqa: BLE001  to be raised where the results are read
        return False, _outcome.Raised.of(_outcome.describe(fn), error, skip_frames=1)
