"""Progress of a map: a bar by tqdm or rich, or whatever a callable makes of it."""

from __future__ import annotations

import contextlib
import importlib
import threading
from typing import TYPE_CHECKING, Any, Protocol

from mpkit._pool.task import is_ctrl_c, report_callback

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    #: False or None: nothing. True or a text: a bar, with that text before it. A
    #: callable is called with how many items are done, and of how many (None: unknown).
    Progress = bool | str | Callable[[int, int | None], object] | None


class Meter(Protocol):
    """What is told of progress."""

    def advance(self, items: int) -> None:
        """So many more items are done."""

    def close(self) -> None:
        """No more will be."""


class _Silent:
    def advance(self, items: int) -> None:
        """Nobody wants to know."""

    def close(self) -> None:
        """Nothing to put away."""


class _Calling:
    def __init__(self, function: Callable[[int, int | None], object], total: int | None) -> None:
        self._function = function
        self._total = total
        self._done = 0

    def advance(self, items: int) -> None:
        self._done += items
        self._function(self._done, self._total)

    def close(self) -> None:
        """The function has heard it all."""


class _Tqdm:
    def __init__(self, text: str, total: int | None) -> None:
        from tqdm.auto import tqdm  # noqa: PLC0415  optional

        # disable=None: no bar where the output is not a terminal.
        self._bar = tqdm(total=total, desc=text or None, disable=None)

    def advance(self, items: int) -> None:
        self._bar.update(items)

    def close(self) -> None:
        self._bar.close()


class _Rich:
    def __init__(self, text: str, total: int | None) -> None:
        # Optional, and not in the checkers' environment.
        self._bar: Any = importlib.import_module("rich.progress").Progress()
        self._item = self._bar.add_task(text, total=total)
        self._bar.start()

    def advance(self, items: int) -> None:
        self._bar.advance(self._item, items)

    def close(self) -> None:
        self._bar.stop()


class _Guarded:
    """A meter for several threads. If it raises, that is reported, and it is told no more."""

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

    Raises ImportError if a bar was asked for and neither tqdm nor rich is installed.
    """
    if progress is None or progress is False:
        return _Silent()
    return _Guarded(_shown(progress, total))


def _shown(progress: bool | str | Callable[[int, int | None], object], total: int | None) -> Meter:
    if callable(progress):
        return _Calling(progress, total)
    if not isinstance(progress, (bool, str)):
        raise TypeError(f"progress is a bool, a text or a function, not {progress!r}")
    text = progress if isinstance(progress, str) else ""
    for kind in (_Tqdm, _Rich):
        try:
            return kind(text, total)
        except ImportError:
            continue
    raise ImportError("progress needs tqdm or rich: pip install 'mpkit[progress]'")
