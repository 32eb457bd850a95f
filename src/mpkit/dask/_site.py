"""A place in the program, on whatever machine."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from mpkit._limit import content

if TYPE_CHECKING:
    from types import FrameType


def site(frame: FrameType) -> str:
    """Name a call in the code for humans."""
    return f"{_module(frame)}:{frame.f_lineno} ({frame.f_code.co_qualname})"


def site_key(frame: FrameType) -> str:
    """Return what identifies a call in the code, on every machine that runs this code."""
    code = frame.f_code
    # Not the file: its folder differs by host, and code that came by value has none.
    facts = [_module(frame), code.co_qualname, str(code.co_firstlineno), str(frame.f_lasti)]
    if code.co_name.startswith("<"):  # several lambdas of a line have all of this in common
        facts.append(repr(list(code.co_positions())[frame.f_lasti // 2]))
    facts.append(repr(content(code)))
    text = "\0".join(facts).encode(errors="surrogatepass")
    return hashlib.blake2b(text, digest_size=10, person=b"mpkit cluster").hexdigest()


def _module(frame: FrameType) -> str:
    name = str(frame.f_globals.get("__name__"))
    # As a child knows what its parent runs as `__main__`.
    return "__main__" if name == "__mp_main__" else name
