"""`Queues`: the tasks of a pool that wait, by priority, and each of these in order of arrival."""

from __future__ import annotations

from collections import defaultdict, deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class Queues:
    """Waiting tasks, and what must be known of those that may come back. A part of a `Schedule`."""

    def __init__(self) -> None:
        # None is empty.
        self._queues: defaultdict[int, deque[int]] = defaultdict(deque)
        self._count = 0
        self._priorities: dict[int, int] = {}
        #: Tasks that are sent alone, to a worker that has nothing else.
        self._alone: set[int] = set()
        #: Those, here or with workers, of which it is not known that they are short.
        self.unknown: set[int] = set()

    def __len__(self) -> int:
        """Return how many tasks wait."""
        return self._count

    def put(self, tasks: Sequence[int], priority: int, *, alone: bool, short: bool) -> None:
        """Tasks arrived. ``alone``: the start of each must be known."""
        if not short:
            self.unknown.update(tasks)
        if priority:
            self._priorities.update(dict.fromkeys(tasks, priority))
        if alone:
            self._alone.update(tasks)
        self._queues[priority] += tasks
        self._count += len(tasks)

    def know(self, task: int, priority: int, *, short: bool) -> None:
        """A task went past here, and may come back."""
        if not short:
            self.unknown.add(task)
        if priority:
            self._priorities[task] = priority

    def put_back(self, tasks: Sequence[int]) -> None:
        """Put tasks where they came from: before those that arrived after them."""
        for task in reversed(tasks):
            self._queues[self._priorities.get(task, 0)].appendleft(task)
        self._count += len(tasks)

    def take(self, most: int, beside: Sequence[int], *, started: bool) -> list[int]:
        """Take out so many at most, for a worker that has others ``beside`` them, or has not even started."""
        taken: list[int] = []
        while len(taken) < most and self._count:
            priority = max(self._queues)
            queue = self._queues[priority]
            if queue[0] in self._alone:
                if taken or beside or not started:
                    break
                most = 1
            elif beside and beside[0] in self._alone:
                break
            # Without any that must be alone, all that there is room for at once.
            count = 1 if self._alone else min(most - len(taken), len(queue))
            taken += [queue.popleft() for _ in range(count)]
            self._count -= count
            if not queue:  # or there would be ever more, if each task has a priority of its own
                del self._queues[priority]
        return taken

    def drain(self) -> list[int]:
        """Take out all that wait, and forget them."""
        tasks = [task for _, queue in sorted(self._queues.items(), reverse=True) for task in queue]
        self._queues.clear()
        self._count = 0
        self.forget(tasks)
        return tasks

    def forget(self, tasks: Iterable[int]) -> None:
        """Tasks will not come back."""
        if self.unknown:
            self.unknown.difference_update(tasks)
        if self._priorities or self._alone:
            for task in tasks:
                self._priorities.pop(task, None)
                self._alone.discard(task)
