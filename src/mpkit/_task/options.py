"""What may be asked for a task: the options of a pool and of a call, checked where given."""

from __future__ import annotations

import math
import operator
import os
from typing import TYPE_CHECKING, NamedTuple, TypedDict, cast

from mpkit import _wait
from mpkit._task.context import propagators

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence
    from contextvars import ContextVar
    from typing import Any, Self, SupportsIndex

    from typing_extensions import Unpack

    from mpkit._task.context import Propagator


class OptionNames(TypedDict, total=False):
    """The keywords of `TaskPool.options`."""

    timeout: float | None
    retries: int
    retry_on: tuple[type[BaseException], ...]
    backoff: float
    priority: int
    name: str | None
    label: str | None
    seed: int | None
    propagate: ContextVar[Any] | Propagator | Sequence[ContextVar[Any] | Propagator]


class _Fields(NamedTuple):
    """Options, not checked."""

    timeout: float | None = None
    retries: int = 0
    retry_on: tuple[type[BaseException], ...] = ()
    backoff: float = 0.0
    priority: int = 0
    name: str | None = None
    label: str | None = None
    seed: int | None = None
    propagate: tuple[Propagator, ...] = ()


class Options(_Fields):
    """How tasks are run: what `TaskPool.options` takes, in one immutable object.

    To be written once and given to several pools. Those of a task are its ``options``.

    Args:
        **names: see `TaskPool.options`.

    Raises:
        TypeError: there is no such option, or it is of the wrong type.
        ValueError: what was given makes no sense.

    Example:
        >>> import mpkit
        >>> patient = mpkit.Options(timeout=60, retries=3)
        >>> with mpkit.TaskPool(1, options=patient) as pool:
        ...     pool.submit(pow, 2, 3).options.timeout
        60
        >>> patient.changed(retries=0)
        Options(timeout=60)

    """

    __slots__ = ()

    def __new__(cls, **names: Unpack[OptionNames]) -> Self:
        check_known(names, cls._fields)
        asked: dict[str, Any] = {**names}
        return super().__new__(cls, **_checked(_Fields(**asked))._asdict())

    def __getnewargs_ex__(self) -> tuple[tuple[()], dict[str, Any]]:
        return (), self._asdict()

    def __repr__(self) -> str:
        said = [
            f"{name}={value!r}"
            for name, value, default in zip(self._fields, self, _Fields())
            if value != default
        ]
        return f"Options({', '.join(said)})"

    def changed(self, **names: Unpack[OptionNames]) -> Options:
        """Return these options with some of them changed."""
        asked: dict[str, Any] = {**self._asdict(), **names}
        return Options(**asked)


def check_known(given: Iterable[str], known: Collection[str]) -> None:
    """Raise TypeError for an option that there is not, and say which one may be meant."""
    unknown = min(set(given) - set(known), default=None)
    if unknown is None:
        return
    import difflib  # noqa: PLC0415  nobody else needs it

    near = difflib.get_close_matches(unknown, known, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(known))}"
    raise TypeError(f"there is no option {unknown!r}: {hint}")


def _checked(asked: _Fields) -> _Fields:
    """Return these options as they are meant; raises for what makes no sense."""
    _wait.check_timeout(asked.timeout)
    if asked.timeout == 0:
        raise ValueError("timeout is more than 0 seconds: no task could end in none")
    for option, text in (("name", asked.name), ("label", asked.label)):
        if not isinstance(text, (str, type(None))):
            raise TypeError(f"{option} is a text, not {text!r}")
    retries = whole_number("retries", asked.retries)
    if retries < 0:
        raise ValueError(f"retries is not negative, unlike {retries}")
    if isinstance(asked.backoff, bool) or not isinstance(asked.backoff, (int, float)):
        raise TypeError(f"backoff is a number of seconds, not {asked.backoff!r}")
    if not 0 <= asked.backoff < math.inf:
        raise ValueError(f"backoff is 0 or more seconds, unlike {asked.backoff!r}")
    seed = None if asked.seed is None else whole_number("seed", asked.seed, 0)
    return asked._replace(
        seed=seed,
        propagate=propagators(asked.propagate),
        retries=retries,
        retry_on=_exception_classes(asked.retry_on),
        priority=whole_number("priority", asked.priority),
    )


def pause_before(options: Options, retry: int) -> float:
    """Return the seconds to wait before the first retry, the second, and so on.

    Each may take twice as long as the one before, a minute at most (unless ``backoff``
    is more), and a random half of that is left out: those that failed together must
    not all come back together.
    """
    longest = min(options.backoff * 2.0 ** min(retry - 1, 60), max(60.0, options.backoff))
    share = int.from_bytes(os.urandom(4), "big") / 2**32  # the module of that name is a slow one
    return longest * (1 + share) / 2


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
