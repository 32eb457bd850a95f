"""What the arguments of a forked process reach.

A forked child inherits everything, so what is *meant* for it has to be found out: a
channel's end moves to it if it can be reached from the target and the arguments, as
it would be under the other start methods, where they are pickled. Here nothing is
pickled, and no code of the user's runs: the garbage collector knows what an object
refers to.
"""

from __future__ import annotations

import functools
import gc
import itertools
from collections import deque
from types import (
    AsyncGeneratorType,
    CodeType,
    CoroutineType,
    FrameType,
    FunctionType,
    GeneratorType,
    ModuleType,
)
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

#: Objects to look at, the near ones first. It takes about 2 ms; so a fork stays fast
#: with data of any size among the arguments, but does not find an end behind so much.
MOST: Final = 8_000
#: Of more parts than this, not all may be looked at (arbitrary).
_FEW: Final = 20


class Bearer:
    """Something with parts that travel with it to a forked process."""

    def _carried(self) -> list[object]:
        """Return these parts."""
        raise NotImplementedError


def reached_from(root: object) -> set[int]:
    """Return the ids of ``root`` and of the objects that it refers to, directly or not."""
    found: set[int] = set()
    kinds: dict[type, Callable[[Any, int], list[Any]] | None] = {}
    level: list[object] = [root]
    left = MOST
    while level:
        parts: list[Any] = []
        masses: list[Any] = []  # the parts of what has many
        ordinary: list[Any] = []  # of which the collector may list the parts, all at once
        for thing in level:
            if id(thing) in found:
                continue
            found.add(id(thing))
            kind = type(thing)  # not __class__, which may be a property
            look = kinds[kind] if kind in kinds else kinds.setdefault(kind, _look(kind))
            if look is None:
                ordinary.append(thing)
            else:
                inside = look(thing, left - len(masses))
                (parts if len(inside) <= _FEW else masses).extend(inside)
        parts += gc.get_referents(*ordinary)
        # Masses of data leave something for what is deeper inside of the rest.
        parts += masses[: max(0, left - len(parts)) // 2]
        del parts[left:]
        left -= len(parts)
        # What is not tracked (a number, a string) refers to nothing.
        level = list(filter(gc.is_tracked, parts))
    return found


#: Not looked into: code, types, modules and what is being executed are inherited and
#: not passed. Under the other start methods they are pickled by name, or not at all.
_CLOSED: Final = (
    type,
    ModuleType,
    CodeType,
    FrameType,
    GeneratorType,
    CoroutineType,
    AsyncGeneratorType,
    type(functools.cache(len)),
)
#: Nor is what these define. A thread, a loop or a pool among the attributes of an object
#: stays with the parent, and so do the ends that it uses there.
_CLOSED_MODULES: Final = frozenset(
    {
        "mpkit",
        "multiprocessing",
        "concurrent",
        "threading",
        "asyncio",
        "_asyncio",
        "queue",
        "_queue",
        "logging",
        "contextvars",
        "_contextvars",
    }
)
_DICT: Final[Any] = dict
_ANY_LENGTH: Final[tuple[Any, ...]] = (list, tuple, dict, set, frozenset, deque)


def _look(kind: type[Any]) -> Callable[[Any, int], list[Any]] | None:
    """Return how to look into objects of this type; None if the collector may do it."""
    if issubclass(kind, Bearer):
        return _carried
    if issubclass(kind, FunctionType):
        return _enclosed
    if issubclass(kind, _CLOSED) or not _CLOSED_MODULES.isdisjoint(_modules(kind)):
        return _nothing
    if issubclass(kind, dict):
        return _items
    for base in _ANY_LENGTH:
        if issubclass(kind, base):
            return _elements(base)
    return None


def _modules(kind: type[Any]) -> set[str]:
    """Return the packages that define the type and its bases."""
    # By way of `type`: a metaclass may have its own idea of these attributes.
    modules = [_MODULE.__get__(base) for base in _MRO.__get__(kind)]
    return {module.partition(".")[0] for module in modules if isinstance(module, str)}


_MRO: Final[Any] = type.__dict__["__mro__"]
_MODULE: Final[Any] = type.__dict__["__module__"]


def _nothing(_: object, __: int) -> list[Any]:
    return []


def _carried(bearer: Bearer, _: int) -> list[Any]:
    return bearer._carried()


def _enclosed(function: FunctionType, _: int) -> list[Any]:
    """Return what a function brings along, unless it has a name to be found by."""
    if "<" not in function.__qualname__:  # <lambda>, <locals>
        return []
    return [function.__closure__, function.__defaults__, function.__kwdefaults__]


def _items(thing: dict[Any, Any], most: int) -> list[Any]:
    # Not by the collector: from Python 3.13 on it sees nothing in the ``__dict__`` of an
    # object that has its attributes itself.
    items = itertools.islice(_DICT.items(thing), max(most, 0) // 2)
    found = list(itertools.chain.from_iterable(items))
    return found if type(thing) is dict else found + gc.get_referents(thing)


def _elements(base: Any) -> Callable[[Any, int], list[Any]]:
    """Return how to look into a container of type ``base``, or of a type made from it."""

    def look(thing: Any, most: int) -> list[Any]:
        if base.__len__(thing) <= most:
            return gc.get_referents(thing)
        return list(itertools.islice(base.__iter__(thing), max(most, 0)))

    return look
