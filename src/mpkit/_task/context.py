"""Context that goes with a call: what it is in who calls, and has to be around it in a worker."""

from __future__ import annotations

import contextlib
import contextvars
import importlib
import sys
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence
    from contextlib import AbstractContextManager


#: Without what is in one, of which no check can tell.
_ANY_VARIABLE: Any = ContextVar


class Propagator(Protocol):
    """Carries something from who makes a call to the worker that runs it. It is pickled."""

    def capture(self) -> Any:
        """Return what is to be carried. Called by who makes the call, once for each."""
        ...

    def attach(self, captured: Any, /) -> AbstractContextManager[object]:
        """Return what puts that in place around the call, or around each item of it."""
        ...


class Variable(NamedTuple):
    """A context variable, which cannot be pickled: where a worker finds it."""

    module: str
    name: str

    def capture(self) -> tuple[Any, ...]:
        """Return its value, or nothing if it has none."""
        there = contextvars.copy_context()
        variable = self._find()
        return (there[variable],) if variable in there else ()

    @contextlib.contextmanager
    def attach(self, captured: tuple[Any, ...], /) -> Generator[None, None, None]:
        variable = self._find()
        for value in captured:
            variable.set(value)  # in a context that is left with the call
        yield

    def _find(self) -> ContextVar[Any]:
        found: Any = getattr(importlib.import_module(self.module), self.name, None)
        if not isinstance(found, _ANY_VARIABLE):
            raise LookupError(
                f"there is no context variable {self.module}.{self.name} in this process: have "
                "it in a module that can be imported, at its top level"
            )
        variable: ContextVar[Any] = found
        return variable


#: Where those are that were looked for.
_known: dict[ContextVar[Any], Variable] = {}


def _variable(var: ContextVar[Any]) -> Variable:
    """Return where a context variable is; raises ValueError if it is no module's attribute."""
    known = _known.get(var)
    if known is not None:
        return known
    for name, module in list(sys.modules.items()):
        attributes: object = getattr(module, "__dict__", None)
        # (A spawned process has its main module twice.)
        if isinstance(attributes, dict) and name != "__mp_main__":
            for attribute, value in list(cast("dict[str, object]", attributes).items()):
                if value is var:
                    _known[var] = Variable(name, attribute)
                    return _known[var]
    raise ValueError(
        f"propagate={var!r} cannot be found by workers: have it in a module, at its top level"
    )


def propagators(given: object) -> tuple[Propagator, ...]:
    """Return what is to be carried, one or several, checked."""
    # A `Variable` is a tuple, too, and so may be an object of the user's.
    single = hasattr(given, "capture") or not isinstance(given, (tuple, list))
    return tuple(map(_propagator, cast("Sequence[object]", [given] if single else given)))


def _propagator(given: object) -> Propagator:
    if isinstance(given, _ANY_VARIABLE):
        return _variable(cast("Any", given))
    methods = [getattr(given, name, None) for name in ("capture", "attach")]
    if isinstance(given, type) or not all(map(callable, methods)):
        raise TypeError(
            "propagate takes context variables, and objects with capture() and "
            f"attach(captured), not {given!r}"
        )
    return cast("Propagator", given)


class Carried:
    """A function, and what is put in place around each call of it."""

    def __init__(self, func: Callable[..., Any], what: Sequence[Propagator]) -> None:
        self.func = func  # by which errors name it
        self._captured = [(propagator, propagator.capture()) for propagator in what]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # In a copy of the context: nothing of it is left for what the worker runs next.
        return contextvars.copy_context().run(self._run, *args, **kwargs)

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        with contextlib.ExitStack() as around:
            for propagator, captured in self._captured:
                around.enter_context(propagator.attach(captured))
            return self.func(*args, **kwargs)
