"""`Claims`: who has begun with which packet of calls. It lives in the scheduler of the cluster.

Dask runs again what was on a worker that died, for all it knows is that the worker had it. So a
worker claims each packet before it begins with it, and each is granted once: a packet that is
found claimed has begun elsewhere, and its tasks are lost; one that is not was in a queue, and
runs. Nobody else decides that, so it holds for a worker that was cut off and comes back, too.

What workers report goes through here to the pool, as long as the claim of its packet is theirs.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from distributed import SchedulerPlugin

if TYPE_CHECKING:
    from collections.abc import Iterable

#: The name of the plugin, and of what it says. Another number if a message means something else.
NAME: Final = "mpkit-claims-1"
REPORT: Final = f"{NAME}-report"


class _Pool:
    """What is known of one pool."""

    def __init__(self, client: str) -> None:
        self.client = client
        #: All packets below this one are claimed, or were taken back.
        self._floor = 0
        #: And of those above it, these.
        self._taken: set[int] = set()
        #: Of those that have been claimed and are not over, the worker's address and process.
        self.running: dict[int, tuple[str, int]] = {}
        #: Of those, the ones that run a long call, behind which nothing is to wait.
        self.long: set[int] = set()

    def take(self, number: int) -> bool:
        """Have a packet; False if somebody had it before."""
        if number < self._floor or number in self._taken:
            return False
        self._taken.add(number)
        while self._floor in self._taken:  # each number is taken sooner or later
            self._taken.remove(self._floor)
            self._floor += 1
        return True


class Claims(SchedulerPlugin):
    """Grants claims. All of it runs in the scheduler's event loop, and never waits.

    It must not raise, either, whatever comes: the scheduler would drop the connection.
    """

    name = NAME
    idempotent = True

    def __init__(self) -> None:
        self._scheduler: Any = None
        self._pools: dict[str, _Pool] = {}

    async def start(self, scheduler: Any) -> None:
        """Answer those who ask, from now on."""
        self._scheduler = scheduler
        scheduler.handlers.update(
            {
                f"{NAME}-open": self.open,
                f"{NAME}-claim": self.claim,
                f"{NAME}-withdraw": self.withdraw,
                f"{NAME}-report": self.report_now,
                f"{NAME}-end": self.end,
            }
        )
        scheduler.stream_handlers[REPORT] = self.report

    # asked by pools

    def open(self, pool: str, client: str) -> dict[str, int]:
        """Know a pool, whose packets are numbered from 0; return how large the cluster is."""
        self._pools[pool] = _Pool(client)
        return self._sizes()

    def withdraw(self, pool: str, number: int) -> bool | None:
        """Take a packet back; False if a worker has claimed it, None if there is no such pool."""
        known = self._pools.get(pool)
        return None if known is None else known.take(number)

    def end(self, pool: str) -> list[int]:
        """Grant no more claims to a pool; return the packets that run."""
        known = self._pools.pop(pool, None)
        return [] if known is None else list(known.running)

    # asked by workers

    def claim(self, pool: str, number: int, worker: str, pid: int) -> bool:
        """Have a worker begin with a packet, if this returns True.

        Not, if the pool has ended, the worker is none of the cluster's any more, or the packet was
        begun or taken back before.
        """
        known = self._pools.get(pool)
        worker = self._scheduler.coerce_address(worker)  # it may call itself by a name
        if known is None or worker not in self._scheduler.workers or not known.take(number):
            return False
        known.running[number] = worker, pid
        return True

    def report(self, pool: str, number: int, worker: str, last: bool, **what: Any) -> None:
        """Pass on to the pool what became of a packet's calls; ``last`` ends the claim."""
        known = self._pools.get(pool)
        holder = None if known is None else known.running.get(number)
        if known is None or holder is None or holder[0] != worker:
            return  # of a worker that was given up, whose tasks were told to be lost
        self._tell(pool, known, {"number": number, "worker": worker, "pid": holder[1], **what})
        if last:
            del known.running[number]
            known.long.discard(number)
        elif what.get("long"):
            known.long.add(number)
        if known.long:
            self._relieve(pool, known, worker if last else "")

    def report_now(self, pool: str, number: int, worker: str, last: bool, **what: Any) -> None:
        """As `report`, of one who waits until it has arrived."""
        self.report(pool, number, self._scheduler.coerce_address(worker), last, **what)

    # told by the scheduler

    def add_worker(self, scheduler: Any, worker: str) -> None:
        """Tell pools that there is more room."""
        self._tell_all(self._sizes())

    def remove_worker(self, scheduler: Any, worker: str, **_: Any) -> None:
        """Tell pools what a worker had claimed that is gone."""
        for name, pool in self._pools.items():
            running = pool.running.items()
            lost = [(number, pid) for number, (holder, pid) in running if holder == worker]
            for number, _pid in lost:
                del pool.running[number]
                pool.long.discard(number)
            self._tell(name, pool, {"gone": worker, "lost": lost, **self._sizes()})

    def remove_client(self, scheduler: Any, client: str) -> None:
        """Forget the pools of a program that is gone."""
        for name in [name for name, pool in self._pools.items() if pool.client == client]:
            del self._pools[name]

    def _relieve(self, name: str, pool: _Pool, ended: str) -> None:
        """Take back what waits behind long calls, for workers that have nothing to do.

        Dask moves tasks, too, but none that depends on much data: that is what the pool shares.
        On the worker ``ended`` is a packet that Dask has not heard of yet.
        """
        workers: dict[str, Any] = self._scheduler.workers
        idle = [
            address
            for address, worker in workers.items()
            if len(worker.processing) - (address == ended) < worker.nthreads
        ]
        busy = {pool.running[number][0] for number in pool.long}
        back: list[int] = []
        for address in busy & set(workers) if idle else ():
            for number in _numbers_of(name, workers[address]):
                if len(back) < len(idle) and pool.take(number):
                    back.append(number)
        if back:
            self._tell(name, pool, {"back": back, "workers": idle})

    def _sizes(self) -> dict[str, int]:
        workers: Iterable[Any] = self._scheduler.workers.values()
        return {"threads": sum(worker.nthreads for worker in workers)}

    def _tell_all(self, what: dict[str, Any]) -> None:
        for name, pool in self._pools.items():
            self._tell(name, pool, what)

    def _tell(self, name: str, pool: _Pool, what: dict[str, Any]) -> None:
        # As an event that is not kept, unlike those of `log_event`: results may be large.
        event = {"op": "event", "topic": name, "event": (time.time(), what)}
        self._scheduler.send_all({pool.client: [event]}, {})


def _numbers_of(pool: str, worker: Any) -> list[int]:
    """Return the packets of a pool that Dask has given to a worker."""
    keys: list[Any] = [task.key for task in worker.processing]
    return [key[1] for key in keys if isinstance(key, tuple) and key[0] == pool]
