"""What tests of limits and signals on a cluster do on its workers, and ask its scheduler."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

from tests.support import until

if TYPE_CHECKING:
    from mpkit.dask import Semaphore, Signal


def new_name() -> str:
    """Return a name that the scheduler does not know: it forgets none."""
    return uuid.uuid4().hex


def hold(semaphore: Semaphore, inside: Signal, leave: Signal) -> str:
    """Hold a slot, and tell so, until that is over; return what was raised at its end."""
    try:
        with semaphore:
            inside.set()
            leave.wait()
    except Exception as error:
        return type(error).__name__
    return ""


def waiting(client: Any, semaphore: Semaphore) -> int:
    """Return how many questions for a slot the scheduler has not answered."""
    key = f"mpkit-{semaphore._key}"

    def pending(dask_scheduler: Any) -> int:
        found: int = dask_scheduler.extensions["semaphores"].metrics["pending"].get(key, 0)
        return found

    count: int = client.run_on_scheduler(pending)
    return count


def until_waiting(client: Any, semaphore: Semaphore, count: int = 1) -> None:
    until(lambda: waiting(client, semaphore) == count)
