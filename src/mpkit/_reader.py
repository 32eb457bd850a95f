"""Who will unpickle what is pickled here, and what of our main module it has by name.

Pickle sends functions and classes as names. Those of modules mean the same in all processes.
Those of ``__main__`` may be missing where they arrive: in workers that were forked before they
were defined, and in new processes that have imported less than was typed in here.
"""

from __future__ import annotations

import functools
import multiprocessing
import pickle
import re
import sys
import weakref
from types import FunctionType
from typing import TYPE_CHECKING, Any, Final, Protocol

from mpkit._platform import mains

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mpkit._mainfile import Names

#: What is in each pickle that names something of a main module.
TRACE: Final = b"_main__"

HOW_TO_MEND: Final = (
    "move it to a module that can be imported, or install mpkit[cloudpickle], "
    "with which what is defined in __main__ travels too"
)


class Reader(Protocol):
    """A process that will unpickle something, or several that have the same names."""

    #: Whether it is one: what it lacks must not be sent by name, come what may.
    sure: bool

    def has(self, name: str, thing: object) -> bool:
        """Tell whether it has what our main module has by that name."""
        ...

    def may_lack(self) -> bool:
        """Tell whether our main module has functions or classes that it has not."""
        ...

    def why(self, name: str) -> str:
        """Tell why it does not have that."""
        ...


class Forked:
    """Has what our main module had at the moment when this is made, and nothing else.

    A child that is about to be forked; or the parent of this process, if it has just begun.
    """

    sure = True

    def __init__(self, since: str, like: Forked | None = None) -> None:
        self._since = since
        # Weak, since a child that was forked does not keep alive what is deleted here.
        self._had: dict[str, weakref.ref[Any]] = (
            {name: weakref.ref(thing) for name, thing in _ours(_main().items())}
            if like is None
            else like._had
        )

    def has(self, name: str, thing: object) -> bool:
        had = self._had.get(name)
        return had is not None and had() is thing

    def may_lack(self) -> bool:
        return any(not self.has(name, thing) for name, thing in _ours(_main().items()))

    def why(self, name: str) -> str:
        return f"it was defined {self._since}"


class Anew:
    """A process that spawn or forkserver starts, with what it imports of our main module."""

    sure = True

    def __init__(self) -> None:
        self._main = sys.modules.get("__main__")
        self._file = mains.imported_file()
        self._why_none = "" if self._file else mains.why_not_imported()

    def is_of_this_program(self) -> bool:
        """Tell whether our main module is still the one that it was."""
        return sys.modules.get("__main__") is self._main

    @functools.cached_property
    def _names(self) -> Names | None:
        from mpkit import _mainfile  # noqa: PLC0415  a worker, which starts without, seldom needs it

        return _mainfile.names_of(self._file) if self._file else None

    def has(self, name: str, thing: object) -> bool:
        if not self._file or not self.is_of_this_program():
            return False
        names = self._names
        if names is None:  # as far as we know
            return True
        if name in names.when_run:
            return False
        # There may be more in there than the source says: what was set by `globals()`.
        return not (mains.at_a_prompt() and (name not in names.always or _was_typed(thing)))

    def may_lack(self) -> bool:
        main, names = _main(), self._names
        if not self._file or mains.at_a_prompt() or not self.is_of_this_program():
            return any(not self.has(name, thing) for name, thing in _ours(main.items()))
        if not names or not names.when_run:
            return False
        return any(_ours((name, main.get(name)) for name in names.when_run))

    def why(self, name: str) -> str:
        if self._why_none:
            return self._why_none
        if self._names and name in self._names.when_run:
            return 'it is below `if __name__ == "__main__":`, which new processes do not run'
        return "it was typed in here"


class Unknown:
    """Whoever receives a message: a process of this program, which may be this one."""

    sure = False

    def __init__(self) -> None:
        self._anew: Anew | None = None

    @property
    def _likely(self) -> Reader | None:
        if _parent is not None:
            return _parent
        method = multiprocessing.get_start_method(allow_none=True)
        if (method or multiprocessing.get_all_start_methods()[0]) == "fork":
            return None
        if self._anew is None or not self._anew.is_of_this_program():
            self._anew = Anew()
        return self._anew

    def has(self, name: str, thing: object) -> bool:
        return (likely := self._likely) is None or likely.has(name, thing)

    def may_lack(self) -> bool:
        return (likely := self._likely) is not None and likely.may_lack()

    def why(self, name: str) -> str:
        return likely.why(name) if (likely := self._likely) else ""


class Foreign:
    """Processes of another program, which have nothing of our main module."""

    sure = True

    def has(self, name: str, thing: object) -> bool:
        return False

    def may_lack(self) -> bool:
        return any(_ours(_main().items()))

    def why(self, name: str) -> str:
        return "workers of a cluster do not import it"


UNKNOWN: Final = Unknown()

#: What the parent of this process has, if that is one of our children.
_parent: Forked | None = None


def begin(common: Forked | None) -> None:
    """Note what a process of ours has in common with its parent, as long as that is all it has.

    Its parent may have noted that itself, just before it has forked this process.
    """
    global _parent
    _parent = Forked("in a process that the program has started", common)


def parent() -> Reader:
    """Return who reads what this process, which is one of ours, has to say."""
    return _parent or UNKNOWN


def child(start_method: str) -> Reader:
    """Return who reads what is sent to processes that are started from now on."""
    return Forked("after the workers were forked") if start_method == "fork" else Anew()


def may_miss(reader: Reader, stream: bytes) -> bool:
    """Tell whether a pickle may name what the reader lacks of our main module.

    Found out by a look at the names in it, if it is short: that takes some 2 µs, and to look at
    all that the main module has takes longer.
    """
    if len(stream) <= _SHORT:
        named: list[tuple[bytes, bytes]] = _named().findall(stream)
        plain = all(length[0] == len(name) for length, name in named)
        if plain and len(named) == stream.count(_BY_NAME):  # so these are all names in it
            main = _main()
            tops = {name.partition(b".")[0].decode() for _, name in named}
            return any(
                not reader.has(top, thing) for top, thing in _ours((t, main.get(t)) for t in tops)
            )
    return reader.may_lack()


#: The operation by which pickle looks a name up, and how that and the name look as a rule: a
#: string of so many bytes, which is noted to be used again. (A name that is used again looks
#: otherwise, and the byte may be in any data: then we do not know.)
_BY_NAME: Final = pickle.STACK_GLOBAL
_SHORT: Final = 4096


@functools.cache  # to compile it takes 0.3 ms, and few workers need it
def _named() -> re.Pattern[bytes]:
    head, tail = re.escape(pickle.SHORT_BINUNICODE), re.escape(pickle.MEMOIZE + _BY_NAME)
    return re.compile(head + rb"(.)([\w.]+)" + tail, re.DOTALL)


def lacks(reader: Reader, thing: Any) -> str | None:
    """Return the name of a function or class of our main module, if the reader has no such one.

    None also for what is not there by its own name: pickle fails with that anyway.
    """
    name = name_in_main(thing)
    if name is None:
        return None
    return None if has(reader, name) else name


def has(reader: Reader, name: str) -> bool:
    """Tell whether the reader has what our main module has by this name."""
    top = name.partition(".")[0]
    return reader.has(top, _main().get(top))


def name_in_main(thing: Any) -> str | None:
    """Return the name by which our main module has a function or class, or None."""
    if getattr(thing, "__module__", None) not in mains.NAMES:
        return None
    name: Any = getattr(thing, "__qualname__", None)
    if not isinstance(name, str):
        return None
    found: Any = sys.modules.get("__main__")
    for part in name.split("."):
        found = getattr(found, part, None)
    return name if found is thing else None


def note_missing(error: BaseException) -> None:
    """Have an error of unpickling say what to do, if it is that a name of ``__main__`` is missing."""
    if isinstance(error, AttributeError) and any(name in str(error) for name in mains.NAMES):
        error.add_note(f"(this process has no such name: {HOW_TO_MEND})")


def _main() -> dict[str, Any]:
    names: dict[str, Any] = getattr(sys.modules.get("__main__"), "__dict__", {})
    return names


#: A function with a cache is pickled by name, too.
CACHED: Final = type(functools.lru_cache(_main))


def _ours(items: Iterable[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Return those of some names that are functions or classes of the main module."""
    found: list[tuple[str, Any]] = []
    for name, thing in list(items):
        kind: type[Any] = type(thing)  # pyright: ignore[reportUnknownVariableType]
        if (kind is FunctionType or kind is CACHED or issubclass(kind, type)) and getattr(
            thing, "__module__", None
        ) in mains.NAMES:
            found.append((name, thing))
    return found


def _was_typed(thing: Any) -> bool:
    """Tell whether a function, or a class with a method, comes from no file."""
    if isinstance(thing, type):
        return any(_was_typed(part) for part in vars(thing).values() if type(part) is FunctionType)
    code = getattr(getattr(thing, "__wrapped__", thing), "__code__", None)
    return str(getattr(code, "co_filename", "")).startswith("<")
