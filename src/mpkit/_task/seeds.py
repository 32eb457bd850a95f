"""Random numbers for each item of its own: where they come from, and how an item gets them.

An item is known by the number of its call, among those that were given the same seed, and by its
place in that call's input. Both are counted where the call is made. So it does not matter which
worker runs it, in which chunk, when, and how often.
"""

from __future__ import annotations

import random
import sys
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.random import Generator, SeedSequence


class _Stream:
    """The random numbers of one item."""

    def __init__(self, seed: int, call: int, item: int) -> None:
        self._seed = seed
        self._call = call
        self._item = item
        self._generator: Generator | None = None

    def generator(self) -> Generator:
        from numpy.random import default_rng  # noqa: PLC0415  optional

        if self._generator is None:
            self._generator = default_rng(self._sequence())
        return self._generator

    def _sequence(self, *key: int) -> SeedSequence:
        from numpy.random import SeedSequence  # noqa: PLC0415  optional

        return SeedSequence(self._seed, spawn_key=(self._call, self._item, *key))

    def run(
        self, fn: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any] = {}
    ) -> Any:
        """Call a function with these numbers, also those that all code of a process shares.

        These are as they were, after it: what has no seed must not repeat the numbers of what has.
        """
        before, _current.stream = _current.stream, self
        shared = random.getstate()
        random.seed(f"{self._seed} {self._call} {self._item}")
        # Not imported for this: who uses it has it, as a rule, since the function came here.
        numpy = sys.modules.get("numpy")
        legacy = None if numpy is None else numpy.random.get_state(legacy=False)
        if numpy is not None:
            numpy.random.seed(self._sequence(0).generate_state(8))
        try:
            return fn(*args, **kwargs)
        finally:
            _current.stream = before
            random.setstate(shared)
            if numpy is not None:
                numpy.random.set_state(legacy)


class _Current(threading.local):
    stream: _Stream | None = None


_current = _Current()


class SeededCall:
    """A function that is called once."""

    def __init__(self, func: Callable[..., Any], seed: int, call: int) -> None:
        self.func = func  # by which errors name it
        self._seed = seed
        self._call = call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _Stream(self._seed, self._call, 0).run(self.func, args, kwargs)


class SeededItems:
    """A function that is called with each item, and its place in front of it."""

    def __init__(self, func: Callable[..., Any], seed: int, call: int, star: bool) -> None:
        self.func = func
        self._seed = seed
        self._call = call
        self._star = star

    def __call__(self, place_and_item: tuple[int, Any]) -> Any:
        place, item = place_and_item
        args = item if self._star else (item,)
        return _Stream(self._seed, self._call, place).run(self.func, args)


def rng() -> Generator:
    """Return NumPy's random generator of the item that is run: `TaskPool` with ``seed``.

    Each task, and each item of a map, has one of its own. It is the same one each time it is
    asked for in the same item.

    Raises:
        RuntimeError: no pool with a seed runs this.
        ImportError: there is no NumPy. The functions of `random` have a seed for each item, too.

    Example:
        >>> import mpkit
        >>> def roll(_):
        ...     return int(mpkit.rng().integers(1, 7))
        >>> with mpkit.TaskPool(0) as pool:
        ...     first = pool.options(seed=1).map(roll, range(9))
        ...     again = pool.options(seed=1).map(roll, range(9), chunksize=2)
        >>> first == again
        True

    """
    if _current.stream is None:
        raise RuntimeError(
            "there are no random numbers here: TaskPool(seed=...) gives each task some"
        )
    try:
        return _current.stream.generator()
    except ModuleNotFoundError as error:
        raise ImportError(
            "mpkit.rng() needs NumPy: pip install numpy; or use the functions of `random`, which "
            "have a seed for each task, too"
        ) from error
