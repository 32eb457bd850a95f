"""Kill, stop and starve the workers of pools at random: the program of `test_pool_chaos`.

``python -m tests.fault.pool_chaos <start method> <tasks> <seconds> <seed>`` goes on until
there were that many tasks and it has run for that long. It compares what becomes of each
with what a witness saw that knows nothing of pools, and prints what it did and what this
process has open before and after, as JSON. The seed decides what is done; at which moment
a signal arrives is up to the machine.
"""

from __future__ import annotations

import contextlib
import gc
import json
import multiprocessing
import os
import random
import resource
import signal
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from concurrent.futures import CancelledError
from typing import Any, NamedTuple

import mpkit
from mpkit._platform.memory import resident_bytes
from tests.fault import chaos_work
from tests.fault.chaos_work import Place, Witness, value_of
from tests.support import PATIENCE, possessions, supervisor_of

WORKERS = 8
#: Tasks in a round, and seconds between two attacks, on average: other methods take longer to
#: start a worker.
ROUND = {"fork": 400, "forkserver": 150, "spawn": 60}
PACE = {"fork": 0.02, "forkserver": 0.1, "spawn": 0.2}
#: A run of any length has so many.
FEWEST_KILLS = 8
#: Limits to the time of tasks: of those that end by themselves, and of those that do not.
LONG, SHORT = 5.0, 0.2


class Monkey:
    """Attacks the workers of a pool; a thread that notes whom, and how often."""

    def __init__(self, pool: mpkit.TaskPool, chance: random.Random, pace: float) -> None:
        self.killed: Counter[int] = Counter()
        self.stopped: Counter[int] = Counter()
        self._pool, self._chance, self._pace = pool, chance, pace
        # Whom it stopped, and until when.
        self._frozen: deque[tuple[float, int]] = deque()
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Monkey:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._enough.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._enough.wait(self._chance.expovariate(1 / self._pace)):
            self._attack()
            while self._frozen and self._frozen[0][0] <= time.monotonic():
                self._thaw()
        while self._frozen:
            self._thaw()

    def _attack(self) -> None:
        supervisor = supervisor_of(self._pool)
        alive = [worker.pid for worker in supervisor._crew.copy().values()]
        started = [state.started for state in supervisor._schedule._workers.copy().values()]
        # A pool takes it that no worker can start if very many in a row do not.
        if not alive or 2 * sum(started) < len(started):
            return
        pid = self._chance.choice(alive)
        if self._chance.random() < 0.7:
            self._signal(pid, signal.SIGKILL)
        else:
            self._signal(pid, signal.SIGSTOP)
            self._frozen.append((time.monotonic() + 2 * SHORT, pid))

    def _thaw(self) -> None:
        """What was stopped goes on, or is killed: not every task has a limit to its time."""
        _, pid = self._frozen.popleft()
        self._signal(pid, self._chance.choice([signal.SIGCONT, signal.SIGKILL]))

    def _signal(self, pid: int, number: int) -> None:
        # Noted before: its task may be settled before kill() returns.
        if number != signal.SIGCONT:
            (self.killed if number == signal.SIGKILL else self.stopped)[pid] += 1
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


class Plan(NamedTuple):
    """One call: the items that it has, and how it is to be run."""

    numbers: list[int]
    kind: str
    timeout: float | None
    retries: int


class Round:
    """Some hundred calls, and what became of them."""

    def __init__(self, pool: mpkit.TaskPool, chance: random.Random, place: Place) -> None:
        self._pool, self._chance, self._place = pool, chance, place
        self._calls: list[tuple[Plan, mpkit.Task[Any]]] = []
        self._called_back: Counter[int] = Counter()
        # What was to be cancelled; a map says no, and ends with the parts that are not.
        self._cancelled: set[int] = set()
        self._cancelled_in_part: set[int] = set()

    def submit(self, count: int) -> None:
        number = 0
        while number < count:
            plan = self._plan(number)
            number += len(plan.numbers)
            task = self._call(plan)
            self._calls.append((plan, task))
            if self._chance.random() < 0.02:
                if task.cancel():
                    self._cancelled.add(plan.numbers[0])
                elif len(plan.numbers) > 1:
                    self._cancelled_in_part.add(plan.numbers[0])

    def wait(self) -> None:
        for plan, task in self._calls:
            task.wait(PATIENCE)
            assert task.done(), f"{plan} is not done: {task}"

    def _plan(self, number: int) -> Plan:
        chance = self._chance
        if chance.random() < 0.02:
            return Plan(list(range(number, number + 10)), "quick", None, 0)
        kinds, weights = list(chaos_work.KINDS), list(chaos_work.KINDS.values())
        (kind,) = chance.choices(kinds, weights)
        timeout = SHORT if kind in chaos_work.ENDLESS else chance.choice([None, None, LONG])
        return Plan([number], kind, timeout, 3 if kind == "flaky" else 0)

    def _call(self, plan: Plan) -> mpkit.Task[Any]:
        calls = self._pool.options(timeout=plan.timeout, retries=plan.retries)
        items = [(number, plan.kind, self._place) for number in plan.numbers]
        if len(items) > 1:
            return calls.starmap_async(chaos_work.work, items, 3)
        number = plan.numbers[0]

        def called_back(_: object) -> None:
            self._called_back[number] += 1

        arguments = (*items[0], chaos_work.ballast_of(plan.kind))
        return calls.apply_async(
            chaos_work.work, arguments, callback=called_back, error_callback=called_back
        )

    def check(self, monkey: Monkey, *, terminated: bool) -> Counter[str]:
        """Compare what the calls say with what the witness saw; return how they ended."""
        witness = Witness(self._place)
        ends: Counter[str] = Counter()
        victims: Counter[int] = Counter()
        slow = 0
        for plan, task in self._calls:
            assert task.done(), f"{plan} is not done: {task}"
            error = error_of(task)
            ends[type(error).__name__] += 1
            facts = f"{plan}: {error!r}; began {witness.began}, ended {witness.ended}"
            assert self._is_right(plan, task, error, witness, terminated), facts
            if isinstance(error, mpkit.TaskTimeout):
                slow += plan.kind not in chaos_work.ENDLESS
            elif isinstance(error, mpkit.WorkerDied) and error.exitcode is not None:
                assert error.pid is not None
                victims[error.pid] += plan.kind not in chaos_work.FATAL
        killed = Counter(monkey.killed)
        assert victims <= killed, f"nobody killed {victims - killed}"
        assert slow <= monkey.stopped.total(), f"{slow} took long, and nobody stopped them"
        return ends

    def _is_right(
        self,
        plan: Plan,
        task: mpkit.Task[Any],
        error: BaseException | None,
        witness: Witness,
        terminated: bool,
    ) -> bool:
        """Tell whether a call may have ended like this."""
        began = [witness.began[number] for number in plan.numbers]
        ended = [witness.ended[number] for number in plan.numbers]
        first, single = plan.numbers[0], len(plan.numbers) == 1
        cancelled = task.cancelled()
        if max(began) > 1 + plan.retries or (first in self._cancelled and not cancelled):
            return False
        if single and self._called_back[first] != (not cancelled):
            return False
        match error:
            case None:
                value = task.result(0) if not single else [task.result(0)]
                right = [value_of(number, plan.kind) for number in plan.numbers]
                if plan.kind == "flaky":
                    return value == right and min(ended) >= 1
                once = began == ended == [1] * len(began)
                return value == right and once and plan.kind in chaos_work.INNOCENT
            case mpkit.WorkerDied():
                # One that was stopped with its pool has no exit code.
                if error.exitcode is None:
                    return terminated
                return not single or plan.retries > 0 or witness.pids[first] <= {error.pid}
            case mpkit.TaskTimeout():
                return plan.timeout is not None
            case CancelledError():
                # What waits for another attempt can be cancelled, too.
                wanted = first in (self._cancelled if single else self._cancelled_in_part)
                return min(began) <= plan.retries and cancelled == single and (terminated or wanted)
            case _:
                kind = chaos_work.RAISES.get(plan.kind)
                return type(error).__name__ == kind and (began, ended) == ([1], [0])


def error_of(task: mpkit.Task[Any]) -> BaseException | None:
    try:
        return task.exception(0)
    except BaseException as error:  # CancelledError
        return error


class Stop(Exception):
    """Leaves a pool by an exception."""


class Chaos:
    """Lets pools live and end, one after the other."""

    def __init__(self, method: str, chance: random.Random, place: Place) -> None:
        self._pace, self._round = PACE[method], ROUND[method]
        self._chance, self._place = chance, place
        self.tasks = self.kills = self.stops = self.pools = 0
        self.ends: Counter[str] = Counter()
        self.resident: list[int] = []

    def live(self, rounds: int) -> None:
        """Have a pool run that many rounds under attack, and then end one way or another."""
        how = self._chance.choice(["close", "terminate", "raise"])
        pool = mpkit.TaskPool(WORKERS)
        with Monkey(pool, self._chance_of_its_own(), self._pace) as monkey:
            with contextlib.suppress(Stop), pool:
                for _ in range(rounds - 1):
                    round_ = self._begin(pool)
                    round_.wait()
                    self._end(round_, monkey)
                round_ = self._begin(pool)
                if how == "terminate":
                    pool.terminate()
                elif how == "raise":
                    raise Stop
        self._end(round_, monkey, terminated=how != "close")
        self.pools += 1
        self.kills += monkey.killed.total()
        self.stops += monkey.stopped.total()

    def _begin(self, pool: mpkit.TaskPool) -> Round:
        with open(self._place.log, "w"):
            round_ = Round(pool, self._chance, self._place)
        round_.submit(self._round)
        return round_

    def _end(self, round_: Round, monkey: Monkey, *, terminated: bool = False) -> None:
        self.ends += round_.check(monkey, terminated=terminated)
        self.tasks = self.ends.total()
        gc.collect()  # what was raised holds frames, and these a round with all its tasks
        self.resident.append(resident_bytes())

    def _chance_of_its_own(self) -> random.Random:
        return random.Random(self._chance.random())


def main(method: str, tasks: int, seconds: float, seed: int) -> None:
    multiprocessing.set_start_method(method)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder, chaos_work.short_of_memory() as group:
        place = Place(os.path.join(folder, "log"), group)
        Chaos(method, random.Random(seed), place).live(1)  # whatever is started or imported once
        before = possessions()
        chaos, end = Chaos(method, chance, place), time.monotonic() + seconds
        while chaos.tasks < tasks or chaos.kills < FEWEST_KILLS or time.monotonic() < end:
            chaos.live(chance.randrange(1, 2 ** chance.randrange(1, 8)) if seconds > 60 else 2)
        after = possessions()
    facts = {name: getattr(chaos, name) for name in ("tasks", "kills", "stops", "pools", "ends")}
    facts |= {
        "before": before,
        "after": after,
        "resident": chaos.resident,
        "oom": group is not None,
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
