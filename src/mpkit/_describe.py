"""What errors and pictures call a function that somebody had called."""

from __future__ import annotations

from types import FunctionType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable


def describe(fn: Callable[..., object]) -> str:
    """Return a name for a call of ``fn`` that a reader of an error will recognise."""
    if type(fn) is FunctionType:  # as most are; and then many calls have the same text
        key = fn.__module__, fn.__qualname__
        try:
            return _texts[key]
        except KeyError:
            return _described(key)
        except TypeError:  # somebody has set a module that is no text, and has no hash
            pass
    inner = getattr(fn, "func", None)  # functools.partial
    if callable(inner):
        return describe(inner)
    module = getattr(fn, "__module__", None)
    name = getattr(fn, "__qualname__", None) or type(fn).__qualname__
    # Whatever a class says that these are: a text comes out.
    return f"{name}" if module in _OF_NO_MODULE else f"{module}.{name}"


#: By modules and names, as far as they were needed lately.
_texts: dict[tuple[str, str], str] = {}
_MOST_TEXTS: Final = 1000


def _described(key: tuple[str, str]) -> str:
    module, name = key
    text = name if module in _OF_NO_MODULE else f"{module}.{name}"
    if len(_texts) >= _MOST_TEXTS:
        _texts.clear()
    _texts[key] = text
    return text


#: The modules that a name is told without.
_OF_NO_MODULE: Final = (None, "builtins", "__main__", "__mp_main__")
