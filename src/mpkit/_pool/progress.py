"""Progress of a map: a bar by tqdm or rich, or whatever a callable makes of it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

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


def meter(progress: Progress, total: int | None) -> Meter:
    """Return what shows ``progress`` of ``total`` items.

    Raises ImportError if a bar was asked for and neither tqdm nor rich is installed.
    """
    if progress is None or progress is False:
        return _Silent()
    if callable(progress):
        return _Calling(progress, total)
    text = progress if isinstance(progress, str) else ""
    for kind in (_Tqdm, _Rich):
        try:
            return kind(text, total)
        except ImportError:
            continue
    raise ImportError("progress needs tqdm or rich: pip install 'mpkit[progress]'")
