"""Who runs what: events in, actions out.

No process, socket, clock or thread is here. The supervisor tells what happened
(`Schedule.submitted`, `finished`, `died`, ...) and then asks what to do (`decide`).
So the policy can be tested by the million in a second, and read in one go.

A worker's tasks are in the order in which it runs them, and it reports each one before
it begins the next. So the first that it has taken and not reported is the one it was
running when it died; all others can run elsewhere.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mpkit._engine.actions import Abandon, Lose, Retire, Send, Spawn, TakeBack
from mpkit._engine.queues import Queues
from mpkit._engine.reserve import Reserve, WorkerState
from mpkit._engine.starts import Starts

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mpkit._engine.actions import Action

#: Seconds of work to send at a time. Enough to hide the 0.1 ms that a message takes to be
#: answered, little enough that one worker's packet does not matter to the others.
PACKET_SECONDS = 0.001

#: Tasks in a packet at most: an estimate may be wrong.
MOST_IN_PACKET = 256

#: Tasks shorter than this (seconds) are sent ahead of need, so that a worker never idles
#: while its answer travels. For longer ones the pause is below one per cent.
SEND_AHEAD_BELOW = 0.01


class Schedule:
    """The state of a pool, and its policy.

    Args:
        size: how many workers there are to be.
        tasks_per_worker: after how many tasks a worker is replaced; None is never.
        reserve: who of the workers is spared, and when.

    """

    def __init__(
        self, size: int, tasks_per_worker: int | None = None, reserve: Reserve | None = None
    ) -> None:
        self.size = size
        self.closing = False
        #: No worker can start; what comes is abandoned.
        self.broken = False
        self._quota = tasks_per_worker
        self._workers: dict[int, WorkerState] = {}
        #: Those that may want tasks: all that have fewer than when they had enough. So what an
        #: event costs does not grow with the number of workers.
        self._open: dict[int, WorkerState] = {}
        #: Those that have nothing to do, and are left alone. They are not open.
        self._reserve = reserve or Reserve()
        self._may_spare = size > self._reserve.few
        #: What was enough for those that are neither, at the least.
        self._enough = math.inf
        #: How many of them retire, and how many tasks all of them have.
        self._retiring = 0
        self._sent = 0
        #: How many tasks were done, and with how many to look who was overtaken.
        self._done = self._look_with = 0
        #: Those that wait.
        self._queues = Queues()
        self._seconds: float | None = None
        self._starts = Starts(size)
        self._postponed = 0
        self._lost: list[Lose] = []

    # what happened

    def submitted(
        self, *tasks: int, priority: int = 0, alone: bool = False, short: bool = False
    ) -> None:
        """Tasks arrived, which are expected to be ``short``, or not.

        ``alone``: the start of each must be known, as its time is limited.
        """
        self._queues.put(tasks, priority, alone=alone, short=short or not self._may_spare)

    def handed(self, worker: int, task: int, *, priority: int = 0, short: bool = False) -> None:
        """A task arrived, and was sent to a worker that had none (see `idle_workers`)."""
        self._queues.know(task, priority, short=short or not self._may_spare)
        state = self._workers[worker]
        self._reserve.spared.pop(worker, None)
        state.done_by_all = self._done
        state.tasks.append(task)
        self._sent += 1
        state.empty_handed = False

    def postponed(self) -> None:
        """A task that failed will be `submitted` again later: the pool is not idle until then."""
        self._postponed += 1

    def resumed(self) -> None:
        """One that was `postponed` is submitted now."""
        self._postponed -= 1

    def spawned(self, worker: int) -> None:
        """A worker exists. It may be sent tasks at once: they wait in its inbox."""
        self._starts.spawned()
        self._workers[worker] = self._open[worker] = WorkerState(self._quota)

    def spawn_failed(self) -> None:
        """The system would not start a process. Go on with those there are, if any."""
        self._starts.spawn_failed()

    def try_again(self) -> None:
        """Some time has passed since the system would not start a process."""
        self._starts.out_of_room = False

    def started(self, worker: int) -> None:
        """A worker has run its initializer."""
        self._starts.started()
        self._workers[worker].started = True

    def init_failed(self) -> None:
        """A worker's initializer raised; its death is told besides."""
        self._starts.init_failed()

    def finished(self, worker: int, tasks: Sequence[int], seconds: float) -> int:
        """A worker reported tasks, each of which took so long.

        Returns how many of them it can have done, as they are the first that it has.
        """
        state = self._workers[worker]
        its, count = state.tasks, 0
        while count < len(tasks) and its and its[0] == tasks[count]:
            its.popleft()
            count += 1
        if not count:
            return 0
        self._queues.forget(tasks[:count])
        self._sent -= count
        self._open[worker] = state
        state.empty_handed = state.overtaken = False
        self._done += count
        state.done_by_all = self._done
        self._reserve.reported(state, more=bool(self._sent or self._queues))
        # A moving average that follows a change within some ten tasks.
        known = self._seconds
        share = 1 - (7 / 8) ** count
        self._seconds = seconds if known is None else known + (seconds - known) * share
        return count

    def returned(self, worker: int, tasks: Sequence[int]) -> None:
        """These came back unread from a worker's inbox, or could not be sent."""
        state = self._workers[worker]
        for task in tasks:
            state.tasks.remove(task)
        if state.quota is not None:
            state.quota += len(tasks)
        state.empty_handed = not tasks
        self._sent -= len(tasks)
        self._open[worker] = state
        self._queues.put_back(tasks)

    def died(self, worker: int) -> list[int]:
        """A worker is gone; what it had not taken was `returned` before.

        Returns what it had taken and not begun, which waits again.
        """
        state = self._workers.pop(worker)
        self._open.pop(worker, None)
        self._reserve.spared.pop(worker, None)
        self._retiring -= state.retiring
        self._sent -= len(state.tasks)
        self._starts.ended(started=state.started, retiring=state.retiring)
        if state.tasks:
            running = state.tasks.popleft()
            self._queues.forget([running])
            self._lost.append(Lose(running, worker))
            self._queues.put_back(state.tasks)
        return list(state.tasks)

    def has_started(self, worker: int) -> bool:
        """Tell whether a worker has run its initializer."""
        return self._workers[worker].started

    def running(self, worker: int) -> int | None:
        """Return the task that a worker runs, or will run next, as far as it has reported."""
        state = self._workers.get(worker)
        return state.tasks[0] if state and state.tasks else None

    def retire(self, worker: int) -> Iterator[Action]:
        """Replace a worker once it has finished what it has."""
        state = self._workers[worker]
        if not state.retiring:
            state.retiring = True
            self._retiring += 1
            yield Retire(worker)

    def withdrawn(self, worker: int, task: int) -> None:
        """A task was cancelled before it could be sent to this worker."""
        state = self._workers[worker]
        state.tasks.remove(task)
        self._sent -= 1
        self._open[worker] = state
        if state.quota is not None:
            state.quota += 1
        self._queues.forget([task])

    def moment_passed(self) -> None:
        """A moment has passed since the schedule `spares` workers, or since this was last told."""
        self._reserve.moment_passed(self._workers.values())

    def close(self) -> None:
        """No more tasks will come."""
        self.closing = True

    def stop(self) -> None:
        """All workers were stopped, and all tasks settled."""
        self.close()
        self._workers.clear()
        self._open.clear()
        self._reserve.spared.clear()
        self._lost.clear()
        self._retiring = self._sent = self._starts.starting = self._postponed = 0
        self._queues.drain()

    # what to do

    def idle_workers(self) -> list[int]:
        """Return the workers that may be `handed` tasks, while there is nothing to decide."""
        if self._queues or self.closing or self._quota is not None or self._lost:
            return []
        return [
            number
            for number, state in self._open.items()
            if state.started and not state.tasks and not state.retiring
        ]

    @property
    def most_ahead(self) -> int:
        """How many tasks a caller may send a worker, as long as they have been taking. Any thread.

        No more than a packet, as half of its journal may be unread (see `Journals.crowded`).
        """
        return min(2 * self._packet(), MOST_IN_PACKET) or 1

    @property
    def backlog(self) -> bool:
        """Whether so many tasks wait that nobody would be sent more if there were others."""
        return 0 < len(self._queues) >= self._packet() * self._in_use()

    @property
    def unreported(self) -> int:
        """How many tasks workers have, as far as they have reported. Any thread may ask."""
        return self._sent

    @property
    def spares(self) -> bool:
        """Whether it leaves workers alone, and is to be told when a `moment_passed`."""
        return bool(self._reserve.spared) and bool(self._sent or self._queues)

    @property
    def idle(self) -> bool:
        """Whether no task waits or runs."""
        return not (self._queues or self._postponed or self._sent)

    @property
    def over(self) -> bool:
        """Whether the pool is closed, and its workers are gone."""
        return self.closing and self.idle and not self._workers and not self._lost

    @property
    def short(self) -> bool:
        """Whether tasks wait, and it is time that may help: `try_again` in a moment."""
        return self._starts.out_of_room and (
            bool(self._queues) or any(len(state.tasks) > 1 for state in self._workers.values())
        )

    def decide(self) -> Iterator[Action]:
        """Yield what to do now. Each action is to be performed before the next is asked for."""
        yield from self._lost
        self._lost.clear()
        starts = self._starts
        while not starts.out_of_room and len(self._workers) + starts.spawning < self._wanted():
            starts.spawning += 1
            yield Spawn()
        if not self._workers and (attempts := starts.given_up()):
            self.broken |= starts.cannot()
            for task in self._queues.drain():
                yield Abandon(task, attempts)
            return
        self._muster()
        yield from self._take_from_overtaken()
        yield from self._hand_out()
        yield from self._rebalance()
        if self._quota is None and not self.closing:
            return
        for number, state in list(self._workers.items()):
            exhausted = state.quota == 0
            if exhausted or (self.closing and self.idle):
                yield from self.retire(number)

    def _wanted(self) -> int:
        """How many workers there should be; those that retire are being replaced."""
        if self.broken or self._starts.cannot():
            return 0
        if self.closing and not self._queues and not self._postponed:
            return 0
        return self.size + self._retiring

    def _hand_out(self) -> Iterator[Action]:
        """Give every worker something before any worker gets more."""
        if not self._queues:
            return
        depth = self._depth()
        if depth >= 2 * self._enough:  # now it is not
            spared = self._reserve.spared
            self._open = {n: state for n, state in self._workers.items() if n not in spared}
            self._enough = depth
        workers = list(self._open.items())
        if self._starts.starting:  # these come last: they may take long
            workers.sort(key=lambda item: not item[1].started)
        packet = depth // 2
        scarce = not packet or packet * self._in_use() > len(self._queues)
        # Below how many tasks a worker gets some, and how many at most.
        rounds: list[tuple[int, int]] = []
        if scarce:
            rounds.append((1, 1))
        if depth > 1:
            rounds.append((packet + 1, packet))
        for enough, most in rounds:
            for number, state in workers:
                while self._queues and len(state.tasks) < enough and state.can_take():
                    tasks = self._next_packet(state, most)
                    if not tasks:
                        break
                    if not state.tasks:
                        state.done_by_all = self._done
                    state.tasks.extend(tasks)
                    self._sent += len(tasks)
                    state.empty_handed = False
                    waiting = len(self._queues)
                    yield Send(number, tasks)
                    # If all of them were withdrawn, it gets the next ones now: it would
                    # report nothing that wakes us. What could not be sent came back.
                    if state.tasks or len(self._queues) > waiting:
                        break
        for number, state in workers:
            if len(state.tasks) > depth // 2 or not state.can_take():
                self._open.pop(number, None)
                self._enough = min(self._enough, depth)

    def _muster(self) -> None:
        """Have as many workers open as are of use, if all that is known says so; else all."""
        reserve, seconds, workers = self._reserve, self._seconds, len(self._workers)
        if not (self._queues or reserve.spared):
            return
        useful = workers
        # Who starts or retires may take long until it does what it has, and be no use besides.
        unsure = self._queues.unknown or self._starts.starting or self._retiring
        if not (seconds is None or unsure or self._quota is not None or reserve.lifted):
            useful = reserve.useful(seconds)
        if useful < workers:
            reserve.spare(self._open, workers, useful)
        elif reserve.spared:
            reserve.release(self._open)

    def _in_use(self) -> int:
        """Return how many workers are not spared."""
        return len(self._workers) - len(self._reserve.spared)

    def _depth(self) -> int:
        """How many unreported tasks a worker may have."""
        packet = self._packet()
        if not packet:
            return 1
        # A share at most, lest the first worker takes all and the others idle.
        share = -(-len(self._queues) // max(1, self._in_use()))
        return 2 * max(1, min(packet, share))

    def _packet(self) -> int:
        """How many tasks to send at a time, if there are enough; 0 if none ahead of need."""
        seconds = self._seconds
        if seconds is None or seconds >= SEND_AHEAD_BELOW:
            return 0
        return min(MOST_IN_PACKET, int(PACKET_SECONDS / max(seconds, 1e-9))) or 1

    def _next_packet(self, state: WorkerState, room: int) -> list[int]:
        """Take tasks for a worker from those that wait."""
        if state.quota is None:
            return self._queues.take(room, state.tasks, started=state.started)
        packet = self._queues.take(min(room, state.quota), state.tasks, started=state.started)
        state.quota -= len(packet)
        return packet

    def _take_from_overtaken(self) -> Iterator[Action]:
        """Take back what lies behind a long task, while there is always something that waits.

        A worker has such a task if the others have done what all could do in four packets.
        """
        if not self._queues or self._done < self._look_with:
            return
        enough = 4 * max(1, self._packet()) * self._in_use()
        self._look_with = self._done + enough
        for number, state in list(self._workers.items()):
            if self._done - state.done_by_all >= enough and state.can_give():
                state.overtaken = True
                yield TakeBack(number)

    def _rebalance(self) -> Iterator[Action]:
        """When a worker has nothing and nobody waits, take back from the one that has most.

        One that is still starting has taken nothing, and gives all that it has.
        """
        while self._sent and not self._queues:
            idle = [it for it in self._open.values() if it.started and not it.tasks]
            if not any(state.can_take() for state in idle):
                return
            spared = self._reserve.spared
            used = self._workers.keys() - spared.keys() if spared else self._workers
            richest = max(used, key=lambda number: self._workers[number].can_give())
            if not self._workers[richest].can_give():
                return
            yield TakeBack(richest)
            yield from self._hand_out()
