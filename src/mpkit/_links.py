"""Makes links of the kind that this system has."""

from __future__ import annotations

from mpkit._link import Link
from mpkit._platform import descriptors


def pair() -> tuple[Link, Link]:
    """Return both ends of a new connection."""
    return _kind().pair()


def adopt(fd: int) -> Link:
    """Return the link whose descriptor arrived from another process."""
    return _kind().adopt(fd)


def _kind() -> type[Link]:
    if descriptors.HAS_PACKETS:
        return Link
    from mpkit._streamlink import StreamLink  # noqa: PLC0415  on macOS only, and takes 0.5 ms

    return StreamLink
