"""The backend of a pool that runs on a Dask cluster: one thread, which has a mailbox.

Whoever submits puts a call into the ledger; the client's event loop puts what it hears into the
mailbox. The thread alone sends packets and settles tasks, so that callbacks, and the unpickling
of results, which is user code, hold up nobody but the pool.
"""

from __future__ import annotations

import os
import queue
import threading
from typing import TYPE_CHECKING, Any, Final, cast

from mpkit._engine.feeds import Feeds
from mpkit._errors import PoolClosed
from mpkit._task.task import report
from mpkit._wait import Deadline
from mpkit.dask import _loads
from mpkit.dask._cluster import Cluster, Ended
from mpkit.dask._lanes import Lanes
from mpkit.dask._ledger import Entry, Ledger
from mpkit.dask._settling import Settling

if TYPE_CHECKING:
    from collections.abc import Callable

    from distributed import Client

    from mpkit._call import Call
    from mpkit._engine.shortcut import Volley
    from mpkit._reader import Reader
    from mpkit._task.options import Options
    from mpkit._task.task import Task
    from mpkit._worker.packing import Each, Part
    from mpkit.dask._ledger import Sent

_CLOSED: Final = "it was closed"

#: Seconds to wait for mail at most: more is too long for a system call, if somebody's ``backoff`` is.
_MOST_SECONDS: Final = 3600.0

#: Seconds from the report of a packet to its end, at most, as far as somebody waits. It takes some ms.
_SEE_OFF: Final = 2.0

#: Seconds to send nothing after a packet was taken back, for who cancels many tasks, one after the
#: other: what is waiting can be cancelled in 5 us, and each packet is asked for once then. (Workers
#: have packets for some 20 ms.)
_CANCELS: Final = 0.01


class DaskEngine:
    """Runs tasks on a Dask cluster. Any thread may call all of it."""

    #: Who unpickles the calls.
    reader: Reader | None = _loads.WORKERS
    round_trip = 0.03
    #: To submit one takes little of what all else takes.
    submit_small = None

    def __init__(self, client: Client, *, ours: bool, most: int | None, shared: object) -> None:
        """``ours``: close the client at the end. ``most``: calls at a time."""
        self.feeds = Feeds()
        self._pid = os.getpid()
        self._ours = ours
        self._most = most
        self._mailbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        packed = None if shared is None else _loads.pack_shared(shared)
        self._cluster = Cluster(client, self._mailbox.put, packed)
        self._ledger = Ledger(lambda: self._mailbox.put(None))
        self.lanes = Lanes()
        self.recorder = self.lanes.recorder
        self._settling = Settling(self._ledger, self._cluster, self.lanes)
        sizes = self._cluster.open()
        self._threads = sizes["threads"]
        self._closed_because: str | None = None
        #: Held while it is closed, and while a task comes in: so none comes in behind the end.
        self._door = threading.RLock()
        self._ending = False
        self._later: list[Callable[[], None]] = []
        self._thread = threading.Thread(target=self._run, name="mpkit dask", daemon=True)
        self._thread.start()

    # what a backend is asked

    @property
    def workers(self) -> int:
        """How many calls run at a time at most: by the threads of the cluster as it is now."""
        threads = max(1, self._threads)
        return threads if self._most is None else min(threads, self._most)

    def check(self, options: Options) -> None:
        """Refuse a seed, which would not hold.

        A worker's event loop has random numbers, too: Dask takes a sample of what it measures
        (`dask.sizeof`). So what a task gets from `random` would depend on when that was.
        """
        if options.seed is not None:
            raise ValueError(
                "a pool on a cluster cannot honour seed=, as all threads of a Dask worker share "
                "their random numbers, and one of them is Dask's own: have each call make a "
                "generator (numpy.random.default_rng) of a seed among its arguments"
            )

    def check_open(self, fed: bool = False) -> None:
        """Raise `PoolClosed` if no calls are taken any more."""
        if self._pid != os.getpid():
            raise PoolClosed(
                "the pool", f"it belongs to process {self._pid}; make one in this process"
            )
        why = self._closed_because
        if why is not None and not (fed and why == _CLOSED):
            raise PoolClosed("the pool", why)

    def submit(self, task: Task[Any], call: Call, fed: bool = False) -> None:
        """Pack the call here, in the caller's thread. Raises NotPicklable, and `PoolClosed`."""
        self.check_open(fed)
        self._add(Entry(task, _loads.pack(call)), fed)

    def submit_chunk(self, task: Task[Any], each: Each, chunk: list[Any]) -> None:
        """As `submit`, for one of many chunks that a function is called with, which are fed."""
        self.check_open(True)
        self._add(Entry(task, _loads.pack_chunk(each, chunk)), True)

    def submit_part(self, task: Task[Any], part: Part, volley: Volley | None) -> None:
        """As `submit`, for a part of a chunk that was packed."""
        self.check_open(volley is None)
        # It ends by its own clock: others in its packet would wait for that.
        self._add(Entry(task, _loads.pack_part(part), alone=True), volley is None)

    def _add(self, entry: Entry, fed: bool) -> None:
        with self._door:
            self.check_open(fed)
            self.recorder.submitted += 1
            self._ledger.add(entry)

    def later(self, call: Callable[[], None]) -> None:
        """Have this called, once, when what was heard is taken in."""
        if self.is_own_thread():
            self._later.append(call)
        else:
            call()

    def is_own_thread(self) -> bool:
        """Tell whether the calling thread is the engine's."""
        return threading.current_thread() is self._thread

    def check_waiter(self, task: Task[Any]) -> None:
        """Raise for those who would wait for themselves."""
        if self._pid != os.getpid():
            self.check_open()
        if self.is_own_thread():
            raise RuntimeError(f"a callback of a pool cannot wait for {task.name}")
        if self._cluster.in_event_loop():
            raise RuntimeError(f"the event loop of a Dask client cannot wait for {task.name}")

    # as the control of tasks

    def recall(self, task: Task[Any]) -> bool:
        """Take back the packet of a task, if no worker has begun with it; it takes a ms or two."""
        if self._pid != os.getpid() or self._cluster.in_event_loop():
            return False
        packet = self._ledger.packet_of(task)
        if packet is None:
            return not task.running() and not task.done()
        with self._settling.holding(packet):
            try:
                withdrawn = self._cluster.withdraw(packet.number)
            except Exception as error:  # noqa: BLE001  in whatever way the connection fails
                self._mailbox.put(error)
                return False
            if withdrawn:
                self._ledger.rest(
                    _CANCELS
                )  # first, or it is sent again before the caller's next one
                self._ledger.give_back(packet, 0)
        self._mailbox.put(lambda: self._held(packet, over=withdrawn is True))
        return withdrawn is True

    def _held(self, packet: Sent, *, over: bool) -> None:
        """Somebody has asked for a packet: go on with it, or be done with it."""
        if over:
            self._settling.drop(packet)
        elif packet.deferred is not None:
            self._handle(packet.deferred)

    def cancelled(self, task: Task[Any]) -> None:
        """End the pause of a task that was to be tried again."""
        if self._pid == os.getpid():
            self._ledger.end_pause(task)

    def kill(self, task: Task[Any]) -> bool:
        """What runs is in a thread of a process that has others, too."""
        return False

    # how it ends

    def cancel_waiting(self) -> None:
        """Cancel the tasks with which no worker has begun."""
        for task in self._ledger.tasks():
            task.cancel()

    def close(self) -> None:
        """Take no more tasks; the thread leaves when all are done."""
        with self._door:
            if self._closed_because is None:
                self._closed_because = _CLOSED
        self.feeds.close(self._no_more)

    def terminate(self) -> None:
        """Take no more tasks, cancel those that wait, give up those that run. Does not wait."""
        with self._door:
            self._closed_because = "it was terminated"
        self.feeds.stop()
        self._mailbox.put(self._settling.end_all)
        self.feeds.close(self._no_more)

    def _no_more(self) -> None:
        self._ending = True
        self._mailbox.put(None)

    def join(self, timeout: float | None) -> bool:
        """Wait until every task is settled, and the thread is gone."""
        if self.is_own_thread():
            raise RuntimeError("a callback of a pool cannot wait for the end of the pool")
        self._thread.join(timeout)
        return not self._thread.is_alive()

    # the thread

    def _run(self) -> None:
        try:
            while not (self._ending and not self._ledger):
                self._take_mail()
                self._feed()
            self._see_off()
        except BaseException as error:  # noqa: BLE001  ours; and nobody is to wait for ever
            report(error, "raised in a thread of mpkit")
            self._break(f"its thread has failed: {error}", error)
        finally:
            self._leave()

    def _see_off(self) -> None:
        """Let Dask hear of the last packets, too: a worker that is closed before that complains."""
        deadline = Deadline(_SEE_OFF)
        try:
            while self._is_to_hear():
                self._handle(self._mailbox.get(timeout=deadline.left()))
        except queue.Empty:  # it has died, say, and left nobody to run them
            return

    def _is_to_hear(self) -> bool:
        late = [packet.late for packet in self._ledger.packets()]
        # What was taken back may be behind one that is late.
        return not all(late) or (self._settling.waits_for_refusals and not late)

    def _take_mail(self) -> None:
        """Wait for mail, and do what all of it says."""
        try:
            mail = self._mailbox.get(timeout=self._ledger.left_to_pause(_MOST_SECONDS))
            while True:
                self._handle(mail)
                mail = self._mailbox.get_nowait()
        except queue.Empty:
            pass
        calls, self._later = self._later, []
        for call in calls:
            call()

    def _handle(self, mail: Any) -> None:
        if isinstance(mail, dict):
            event = cast("dict[str, Any]", mail)
            self._threads = event.get("threads", self._threads)
            self._settling.told(event)
        elif isinstance(mail, Ended):
            failure = self._settling.ended(mail)
            if failure is not None:
                self._lose_scheduler(failure)
        elif isinstance(mail, Exception):
            self._lose_scheduler(mail)
        elif mail is not None:
            mail()

    def _feed(self) -> None:
        """Send packets, as long as there is room and something to send."""
        while True:
            packet, cancelled = self._ledger.next_packet(self._threads, self._most)
            for _ in range(cancelled):
                self.recorder.task_cancelled()
            if packet is not None:
                self._send(packet)
            elif not cancelled:
                return

    def _send(self, packet: Sent) -> None:
        priority = max(entry.priority for entry in packet.entries)
        packed = packet.packed(shares=self._cluster.shared is not None)
        try:
            packet.future = self._cluster.send(
                packet.number, packed, packet.larges, priority, packet.workers
            )
        except Exception as error:  # noqa: BLE001  in whatever way: the connection, or a worker
            failure = self._settling.not_sent(packet, error)
            if failure is not None:
                self._lose_scheduler(failure)

    def _lose_scheduler(self, error: BaseException) -> None:
        self._break(
            f"its connection to the scheduler ({self._cluster.scheduler}) was lost: {error}", error
        )

    def _break(self, why: str, error: BaseException) -> None:
        """Nothing can be run any more: fail all there is."""
        with self._door:
            if self._closed_because in (None, _CLOSED):
                self._closed_because = why
        self.feeds.stop()
        self._settling.fail_all(why, error)

    def _leave(self) -> None:
        self._settling.over()
        if self._ours:
            self._cluster.close_client()
        self.recorder.close()
