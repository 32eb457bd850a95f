"""What the C library keeps back of what C code prints."""

from __future__ import annotations

import contextlib
from typing import Any, Final

from mpkit._platform import DARWIN

#: ``_IONBF`` of all of them.
_UNBUFFERED: Final = 2


def keep_nothing_back() -> None:
    """Have ``printf`` write at once, as Python's ``-u`` does; where that cannot be had, nothing.

    What is kept back by now is forgotten: a fork has handed it down, and the parent writes it.
    """
    # ImportError: this Python has no ctypes. ValueError, AttributeError: the library calls it otherwise.
    with contextlib.suppress(ImportError, OSError, ValueError, AttributeError):
        import ctypes  # noqa: PLC0415  slow to import, and rarely needed

        library: Any = ctypes.CDLL(None)
        stdout = ctypes.c_void_p.in_dll(library, "__stdoutp" if DARWIN else "stdout")
        forget = library.fpurge if DARWIN else library.__fpurge
        forget(stdout)
        library.setvbuf(stdout, None, _UNBUFFERED, ctypes.c_size_t(0))
