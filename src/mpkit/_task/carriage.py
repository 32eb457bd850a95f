"""What goes with calls into workers besides their arguments: the function is wrapped in it."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from mpkit._task.context import Carried

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mpkit._task.options import Options


class Carriage:
    """Wraps the functions of some options, and of all views that have their seed from them."""

    def __init__(self, options: Options, calls: itertools.count[int] | None = None) -> None:
        self._seed = options.seed
        self._propagate = options.propagate
        #: Numbers of calls.
        self.calls: itertools.count[int] = itertools.count() if calls is None else calls

    def once(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Return what to call in place of a function."""
        if self._propagate:
            fn = Carried(fn, self._propagate)
        if self._seed is not None:
            from mpkit._task.seeds import SeededCall  # noqa: PLC0415  few need it

            fn = SeededCall(fn, self._seed, next(self.calls))
        return fn

    def each(
        self, fn: Callable[..., Any], items: Iterable[Any], *, star: bool
    ) -> tuple[Callable[..., Any], Iterable[Any], bool]:
        """Return what to call in place of a function, with which items, and if they are arguments."""
        if self._propagate:
            fn = Carried(fn, self._propagate)
        if self._seed is not None:
            from mpkit._task.seeds import SeededItems  # noqa: PLC0415  few need it

            fn = SeededItems(fn, self._seed, next(self.calls), star)
            items, star = enumerate(items), False
        return fn, items, star


def of(options: Options, calls: itertools.count[int] | None) -> Carriage | None:
    """Return what these options need; None if that is nothing."""
    needed = options.seed is not None or options.propagate
    return Carriage(options, calls) if needed else None
