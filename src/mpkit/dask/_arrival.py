"""What arrives on a worker that may lack mpkit: it travels by value, and imports the rest there.

A worker of Dask that cannot unpickle a message loses its connection, and all that it has with it.
So nothing may name a module of ours in there. These are functions inside a function, which
pickle does not find by a name; Dask then leaves them to cloudpickle, which sends their code.
"""

from __future__ import annotations

from typing import Any


def _by_value() -> tuple[Any, Any, Any]:
    def enter(pool: str, number: int, packed: bytes, *beside: Any) -> Any:
        import importlib  # noqa: PLC0415  there, and not here

        packet = importlib.import_module("mpkit.dask._packet")
        return packet.run(pool, number, packed, *beside)

    def share(parts: list[Any]) -> Any:
        import importlib  # noqa: PLC0415  likewise

        try:
            packet = importlib.import_module("mpkit.dask._packet")
        except ImportError:  # as the packets that need it will say
            return None
        return packet.SharedThere(parts)

    def begin(key: str, what: str, frames: list[Any]) -> Any:
        import importlib  # noqa: PLC0415  likewise

        job = importlib.import_module("mpkit.dask._job")
        return job.run(key, what, frames)

    return enter, share, begin


#: Runs a packet: `_packet.run`. Raises ImportError where mpkit is not installed.
#: And a job: `_job.run`.
enter, share, begin = _by_value()
