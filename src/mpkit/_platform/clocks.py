"""A clock that nobody sets, and that goes on while the machine sleeps."""

from __future__ import annotations

import time
from typing import Final

#: Linux's monotonic clock stands still while the machine sleeps, and macOS's does not.
_CLOCK: Final[int] = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def seconds() -> float:
    """Return the time in seconds, of which only differences mean something."""
    return time.clock_gettime(_CLOCK)
