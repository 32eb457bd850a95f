"""The functions that workers call. Alone in a file, as every worker has to import it."""

from __future__ import annotations

import os
from typing import Any

#: Of an array in the rows about large ones.
BYTES = 32_000_000
_PAGE = 4096

_kept: dict[str, Any] = {}


def noop(*_: object) -> None:
    return None


def own_pid(*_: object) -> int:
    return os.getpid()


def read(array: Any) -> float:
    """Have every page of an array here; to read every byte takes longer than to copy it."""
    return float(array.view("u1")[::_PAGE].sum())


def make(_: int) -> Any:
    """Return an array that this worker made once, so that making it is hardly measured."""
    import numpy

    if "array" not in _kept:
        _kept["array"] = numpy.ones(BYTES // 8)
    return _kept["array"]
