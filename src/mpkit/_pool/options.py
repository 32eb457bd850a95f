"""What may be asked for a task: the options of a pool and of a call, checked where given."""

from __future__ import annotations

import math
import operator
import os
from typing import TYPE_CHECKING, NamedTuple, TypedDict, cast

from mpkit import _wait

if TYPE_CHECKING:
    from typing import SupportsIndex

    from typing_extensions import Unpack


class OptionNames(TypedDict, total=False):
    """The keywords of `TaskPool.options`."""

    timeout: float | None
    retries: int
    retry_on: tuple[type[BaseException], ...]
    backoff: float
    priority: int
    name: str | None
    label: str | None


class Options(NamedTuple):
    """How to run a task. `changed` makes them, and checks what it is given.

    Args:
        timeout: seconds that it may run, from its start in a worker. Then its worker is
            killed. None is no limit.
        retries: how many times it is run again after it failed by a crash, a timeout or
            one of ``retry_on``.
        retry_on: exceptions after which it is run again.
        backoff: seconds until it is run again; see `pause_before`.
        priority: tasks of a higher one start first.
        name: what errors and pictures call it, instead of its function's name.
        label: a text that goes with it, besides: in errors, log records and pictures.

    """

    timeout: float | None = None
    retries: int = 0
    retry_on: tuple[type[BaseException], ...] = ()
    backoff: float = 0.0
    priority: int = 0
    name: str | None = None
    label: str | None = None

    def _checked(self) -> Options:
        """Return these options as they are meant; raises for what makes no sense."""
        _wait.check_timeout(self.timeout)
        if self.timeout == 0:
            raise ValueError("timeout is more than 0 seconds: no task could end in none")
        for option in ("name", "label"):
            text = getattr(self, option)
            if not isinstance(text, (str, type(None))):
                raise TypeError(f"{option} is a text, not {text!r}")
        retries = whole_number("retries", self.retries)
        if retries < 0:
            raise ValueError(f"retries is not negative, unlike {retries}")
        if isinstance(self.backoff, bool) or not isinstance(self.backoff, (int, float)):
            raise TypeError(f"backoff is a number of seconds, not {self.backoff!r}")
        if not 0 <= self.backoff < math.inf:
            raise ValueError(f"backoff is 0 or more seconds, unlike {self.backoff!r}")
        return self._replace(
            retries=retries,
            retry_on=_exception_classes(self.retry_on),
            priority=whole_number("priority", self.priority),
        )

    def pause_before(self, retry: int) -> float:
        """Return the seconds to wait before the first retry, the second, and so on.

        Each may take twice as long as the one before, a minute at most (unless ``backoff``
        is more), and a random half of that is left out: those that failed together must
        not all come back together.
        """
        longest = min(self.backoff * 2.0 ** min(retry - 1, 60), max(60.0, self.backoff))
        share = (
            int.from_bytes(os.urandom(4), "big") / 2**32
        )  # the module of that name is a slow one
        return longest * (1 + share) / 2

    def changed(self, **names: Unpack[OptionNames]) -> Options:
        """Return these options with some of them changed."""
        unknown = names.keys() - set(self._fields)
        if unknown:
            raise TypeError(f"there is no option {unknown.pop()!r}")
        return self._replace(**names)._checked()


def whole_number(name: str, value: object, least: int | None = None) -> int:
    """Return an argument that is to be a whole number, one of numpy's too."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(cast("SupportsIndex", value))
    except TypeError:
        raise TypeError(f"{name} is a whole number, not {value!r}") from None
    if least is not None and number < least:
        raise ValueError(f"{name} is {least} or more, not {number}")
    return number


def _exception_classes(given: object) -> tuple[type[BaseException], ...]:
    """Return one class, or a tuple of them, as a tuple; raises TypeError for all else."""
    kinds = cast("tuple[object, ...]", given if isinstance(given, tuple) else (given,))
    classes: list[type[BaseException]] = []
    for kind in kinds:
        if not (isinstance(kind, type) and issubclass(kind, BaseException)):
            raise TypeError(f"retry_on is a tuple of exception classes, not {given!r}")
        classes.append(kind)
    return tuple(classes)
