"""Picklers that know what their reader lacks of our main module.

One, where ``cloudpickle`` is installed, sends just that by value, and by name all that the
reader has, so that a class goes on being the one that the reader's own functions know. The
other one, elsewhere, refuses it.
"""

from __future__ import annotations

import functools
import pickle
from collections import ChainMap
from types import FunctionType
from typing import TYPE_CHECKING, Any

from mpkit import _reader
from mpkit._platform import mains

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping

    from mpkit._reader import Reader


class Missing(pickle.PicklingError):
    """The reader has no function or class of this name."""

    def __init__(self, thing: object, holder: object, name: str) -> None:
        super().__init__(name)
        self.thing = thing
        #: What was to be pickled before: an object, if that is its class.
        self.holder = holder
        self.name = name


class Refusing(pickle.Pickler):
    """Plain pickle, but for what its reader lacks."""

    reader: Reader
    _before: object = None

    def reducer_override(self, thing: Any) -> Any:
        name = _reader.lacks(self.reader, thing)
        if name is not None:
            raise Missing(thing, self._before, name)
        self._before = thing
        return NotImplemented


def pickler(reducers: MutableMapping[type, Any]) -> Any:
    """Return the class of picklers that use cloudpickle, or None where that is not installed.

    ``reducers`` are for what cloudpickle knows nothing of; always the same mapping.
    """
    try:
        import cloudpickle as untyped  # noqa: PLC0415  optional
    except ImportError:
        return None
    cloudpickle: Any = untyped
    return _made(cloudpickle.Pickler, reducers)


def _made(base: Any, reducers: MutableMapping[type, Any]) -> Any:
    if base not in _kinds:
        own = {
            "reader": _reader.UNKNOWN,
            "reducer_override": _override(base.reducer_override),
            "dispatch_table": ChainMap(
                {memoryview: reducers[memoryview]}, base.dispatch_table, reducers
            ),
        }
        _kinds[base] = type("ByValue", (base,), own)
    return _kinds[base]


_kinds: dict[Any, Any] = {}


def _override(dynamic: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Return a ``reducer_override`` that asks the reader before it asks cloudpickle's."""

    def reducer_override(self: Any, thing: Any) -> Any:
        kind: type[Any] = type(thing)  # pyright: ignore[reportUnknownVariableType]
        if kind is FunctionType or issubclass(kind, type):
            name = _reader.name_in_main(thing)
            # Asked once: who unpickles a class of ours that comes back replaces its methods.
            if name is not None and _reader.has(self.reader, name):
                return name
        elif kind is _reader.CACHED and _is_nameless(self.reader, thing):
            return _cached_again, (thing.__wrapped__, thing.cache_parameters())
        return dynamic(self, thing)

    return reducer_override


def _is_nameless(reader: Reader, thing: Any) -> bool:
    """Tell whether the reader cannot find a function with a cache, of which pickle sends the name."""
    if "<" in thing.__qualname__:  # of a closure, or a lambda
        return True
    if thing.__module__ not in mains.NAMES:
        return False
    return _reader.name_in_main(thing) is None or _reader.lacks(reader, thing) is not None


def _cached_again(fn: Callable[..., Any], parameters: dict[str, Any]) -> Any:
    """Return a function with a cache, which is empty."""
    return functools.lru_cache(**parameters)(fn)
