"""Progress of a map: a bar by tqdm, or whatever a callable makes of it."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Protocol, cast

from mpkit._task.task import is_ctrl_c, report_callback

if TYPE_CHECKING:
    from collections.abc import Callable, Generator


class Bar(Protocol):
    """What a tqdm does."""

    def update(self, n: int, /) -> object:
        """So many more items are done."""

    def close(self) -> object:
        """No more will be."""


if TYPE_CHECKING:
    #: False or None: nothing. True or a text: a bar, with that text before it, where the output
    #: is a terminal or a notebook. A bar of one's own, such as ``tqdm(total=9, disable=False)``,
    #: is updated, and closed. A callable is called with how many items are done, and of how many
    #: (None: unknown).
    Progress = bool | str | Bar | Callable[[int, int | None], object] | None


class Meter(Protocol):
    """What is told of progress."""

    @property
    def silent(self) -> bool:
        """Whether nobody wants to know."""
        ...

    def advance(self, items: int) -> None:
        """So many more items are done."""

    def close(self) -> None:
        """No more will be."""


class _Silent:
    silent = True

    def advance(self, items: int) -> None:
        """Nobody wants to know."""

    def close(self) -> None:
        """Nothing to put away."""


class _Calling:
    silent = False

    def __init__(self, function: Callable[[int, int | None], object], total: int | None) -> None:
        self._function = function
        self._total = total
        self._done = 0

    def advance(self, items: int) -> None:
        self._done += items
        self._function(self._done, self._total)

    def close(self) -> None:
        """The function has heard it all."""


class _Showing:
    silent = False

    def __init__(self, bar: Bar) -> None:
        self._bar = bar

    def advance(self, items: int) -> None:
        self._bar.update(items)

    def close(self) -> None:
        self._bar.close()


class _Guarded:
    """A meter for several threads. If it raises, that is reported, and it is told no more."""

    silent = False

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        # Re-entrant: what is told of progress may end that of which it is told.
        self._lock = threading.RLock()

    def advance(self, items: int) -> None:
        with self._lock, self._harmless():
            self._meter.advance(items)

    def close(self) -> None:
        with self._lock, self._harmless():
            self._meter.close()

    @contextlib.contextmanager
    def _harmless(self) -> Generator[None, None, None]:
        try:
            yield
        except BaseException as error:
            if is_ctrl_c(error):
                raise
            # The user's, and not the work's affair.
            self._meter = _Silent()
            report_callback("a map (progress=)", error)


def meter(progress: Progress, total: int | None) -> Meter:
    """Return what shows ``progress`` of ``total`` items.

    Raises ImportError if a bar was asked for and tqdm is not installed.
    """
    if progress is None or progress is False:
        return _Silent()
    return _Guarded(_shown(progress, total))


def _shown(
    progress: bool | str | Bar | Callable[[int, int | None], object], total: int | None
) -> Meter:
    if isinstance(progress, type):
        raise TypeError(
            f"progress is a bar, and not the class of one, {progress!r}: make one, or say True"
        )
    if isinstance(progress, (bool, str)):
        return _Showing(_bar(progress if isinstance(progress, str) else "", total))
    if callable(getattr(progress, "update", None)) and callable(getattr(progress, "close", None)):
        return _Showing(cast("Bar", progress))
    if callable(progress):
        return _Calling(progress, total)
    raise TypeError(f"progress is a bool, a text, a bar or a function, not {progress!r}")


def _bar(text: str, total: int | None) -> Bar:
    try:
        from tqdm.auto import tqdm  # noqa: PLC0415  optional
    except ImportError:
        raise ImportError("a bar needs tqdm: pip install 'mpkit[progress]'") from None
    # disable=None: none where the output is neither a terminal nor a notebook.
    bar: Bar = tqdm(total=total, desc=text or None, disable=None)
    return bar
