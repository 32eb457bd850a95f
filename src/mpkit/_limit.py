"""limit(): a Semaphore that belongs to a place in the program, or to a name.

The place is the *call site*: the code object and the instruction that calls. Every
process that runs the same code finds the same one, so nothing has to be passed around.
"""

from __future__ import annotations

import hashlib
import sys
from types import CodeType
from typing import TYPE_CHECKING, cast

from mpkit import _fork, _runtime, _wait
from mpkit._platform import mains
from mpkit._semaphore import Semaphore as Semaphore
from mpkit._semaphore import check_slots, line, source
from mpkit._signal import check_name

if TYPE_CHECKING:
    from types import FrameType


def limit(slots: int, *, name: str | None = None, timeout: float | None = None) -> Semaphore:
    """Let at most ``slots`` run a block or a function at once, in all processes together.

    ``with mpkit.limit(4):`` needs nothing passed around: every process of the program,
    whatever its start method, that runs *this line* shares the same four slots, and no
    other line does. The program is its root process and all that it started through
    multiprocessing; with a ``name``, all programs of this user that give the same name
    share them. Also ``async with``, and a decorator. All else is as for `Semaphore`.

    Args:
        slots: how many may run it at once, 1 to 1,000,000.
        name: letters, digits and ``_.:@+-``; None for this place in the program.
        timeout: seconds for which ``with`` waits for a slot; None waits for ever.

    Raises:
        LimitMismatch: it is in use with another number of slots.
        LimitTimeout: from ``with``: no slot became free within ``timeout``.
        WouldDeadlock: from ``with``: this thread holds all slots, and would wait for ever.
        RuntimeDirectoryError: the directory in which processes meet cannot be used.

    Example:
        >>> import mpkit
        >>> def fetch(n: int) -> int:
        ...     with mpkit.limit(2):
        ...         return n * n
        >>> fetch(3)
        9

    """
    frame = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
    # By id: a code object's own hash reads all of its code. The cache keeps the code.
    site = (id(frame.f_code), frame.f_lasti, slots, name, timeout)
    known = _sites.get(site)
    if known is not None and type(slots) is int:  # True == 1, and 4.0 == 4
        return known[0]
    semaphore = _make(slots, name, timeout, frame)
    _sites[site] = semaphore, frame.f_code
    return semaphore


#: The semaphores of `limit`, for as long as the process lives.
_sites: dict[tuple[object, ...], tuple[Semaphore, CodeType]] = {}


def _make(slots: int, name: str | None, timeout: float | None, frame: FrameType) -> Semaphore:
    check_slots(slots)
    _wait.check_timeout(timeout)
    folder: str | None
    if name is not None:
        check_name(name)
        folder, key, place = _runtime.named_home().path, name, f"limit {name!r}"
    else:
        imported = mains.is_being_imported()
        folder = None if imported else _runtime.family_home().path
        key, place = _site_key(frame), f"limit at {line(frame)}"
    semaphore = Semaphore._at(folder, slots, key, place, timeout)  # pyright: ignore[reportPrivateUsage]
    if name is None:
        with _fork.guard:
            _fork.know(semaphore)
    return semaphore


def _site_key(frame: FrameType) -> str:
    """Return what identifies a call in the code, in every process that runs this code."""
    code = frame.f_code
    facts = [source(code), code.co_qualname, str(code.co_firstlineno), str(frame.f_lasti)]
    if code.co_name.startswith("<"):  # several lambdas of a line have all of this in common
        facts.append(repr(list(code.co_positions())[frame.f_lasti // 2]))
    # A path may have bytes that are no text, which Python keeps as surrogates.
    text = "\0".join(facts).encode(errors="surrogatepass")
    digest = hashlib.blake2b(text, digest_size=10, person=b"mpkit limit")
    if code.co_filename.startswith("<"):  # "<string>" and such: there may be several
        digest.update(repr(content(code)).encode(errors="backslashreplace"))
    return digest.hexdigest()


def content(value: object) -> object:
    """Return what makes code or a constant what it is, the same in every process."""
    if isinstance(value, CodeType):
        parts = (value.co_names, value.co_varnames, value.co_freevars, content(value.co_consts))
        return value.co_code, *parts
    if isinstance(value, tuple):
        return tuple(content(part) for part in cast("tuple[object, ...]", value))
    if isinstance(value, frozenset):  # its order differs
        return sorted(repr(content(part)) for part in cast("frozenset[object]", value))
    return repr(value)
