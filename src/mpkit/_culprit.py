"""Where inside an object another one is: for the error that says what cannot be pickled.

Looked for when pickling has failed, and only then. No code of the user's runs.
"""

from __future__ import annotations

import functools
from collections import deque
from types import FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: Objects to look at, the near ones first. (Arbitrary; it takes some 10 ms.)
MOST: Final = 10_000


def path_to(culprit: object, root: object, names: Sequence[str] = ()) -> str:
    """Return how to get from ``root`` to ``culprit``: ``"[0].config['lock']"``; "" if unknown.

    ``names`` are what to call the elements of ``root``, if it is a tuple made for the
    occasion.
    """
    found = {id(root)}
    whole: Any = root
    waiting = deque(zip(names, whole, strict=True) if names else [("", whole)])
    while waiting and len(found) < MOST:
        path, thing = waiting.popleft()
        if thing is culprit:
            return path
        for step, part in _parts(thing):
            if id(part) not in found:
                found.add(id(part))
                waiting.append((path + step, part))
    return ""


_DICT: Final[Any] = dict
_IN_ORDER: Final[Any] = (list, tuple, deque)
_IN_NONE: Final[Any] = (set, frozenset)


def _parts(thing: Any) -> Iterator[tuple[str, Any]]:
    """Yield what an object has, and how to write that."""
    kind: type[Any] = type(thing)  # pyright: ignore[reportUnknownVariableType]
    if issubclass(kind, (type, ModuleType, str, bytes)):
        return
    if issubclass(kind, dict):
        for key, value in list(_DICT.items(thing)):
            yield f"[{_short(key)}]", value
            yield f" (its key {_short(key)})", key
    elif issubclass(kind, _IN_ORDER):
        yield from ((f"[{index}]", part) for index, part in enumerate(_iterate(kind, thing)))
    elif issubclass(kind, _IN_NONE):
        yield from ((" (an element)", part) for part in _iterate(kind, thing))
    elif issubclass(kind, functools.partial):
        yield from ((".func", thing.func), (".args", thing.args), (".keywords", thing.keywords))
    elif issubclass(kind, MethodType):
        yield ".__self__", thing.__self__
    elif issubclass(kind, FunctionType):
        yield from _enclosed(thing)
    yield from _attributes(thing, kind)


def _iterate(kind: Any, thing: Any) -> Iterator[Any]:
    base = next(base for base in (*_IN_ORDER, *_IN_NONE) if issubclass(kind, base))
    elements: Iterator[Any] = base.__iter__(thing)
    return elements


def _enclosed(function: FunctionType) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        try:
            yield f" (its variable {name})", cell.cell_contents
        except ValueError:  # it is not set yet
            continue


def _attributes(thing: Any, kind: Any) -> Iterator[tuple[str, Any]]:
    try:
        attributes: Any = object.__getattribute__(thing, "__dict__")
    except AttributeError:
        attributes = {}
    if isinstance(attributes, dict):
        for name, value in list(_DICT.items(attributes)):
            yield f".{name}", value
    for base in type.mro(kind):
        slots: Any = vars(base).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            try:
                yield f".{name}", object.__getattribute__(thing, name)
            except AttributeError:  # not set; or the name is a private one
                continue


def _short(key: object) -> str:
    if isinstance(key, (str, bytes, int, float)):
        text = repr(key)
        return text if len(text) <= 40 else f"{text[:37]}..."
    return "..."
