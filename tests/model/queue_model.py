"""The protocol of the queue (see `mpkit._waiter`) as a machine whose every state is visited.

One slot. A holder has it at first; waiters come, wait, and hold it in turn. Each step is
one kernel call or one write to the mapped file, and after each step anybody may run, or
be killed. Whatever is mutable is in `State`; a process is what it does next and what it
knows. `explore` visits every state that can be reached, and returns one in which a wake-up
was lost: nobody can take another step, the slot is free, and a waiter sleeps. (That two
never have the slot is the lock's doing, and not the subject.)

`broken` names one rule that is not kept (see `RULES`), so that it can be shown that
the model would find what the rule is there for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

#: What can be broken, and how.
RULES = {
    "say it under the lock": "who joins says that somebody waits before he has the lock",
    "lead before looking": "the first one looks at the slot before he notes that he is first",
    "watch before looking": "the first one looks once, and watches the holder afterwards",
    "watch who is ahead": "who is not first waits for his bell only",
    "watch the holder": "who is first waits for his bell only",
    "unlock before ringing": "who releases rings first, and then unlocks",
    "clear before ringing": "who leaves rings the next one first, and then clears his entry",
    "ring the next one": "who leaves does not ring",
    "drain before looking": "who wakes looks first, and then silences his bell",
    "listen again": "who comes back from the kernel without the slot still says he needs no bell",
    "forget under the lock": "who finds nobody waiting says so without looking at joiners",
}

#: Nobody.
OUT = -1

#: Steps that no other process can tell the moment of: to do them at once loses no order.
LOCAL = {"left", "again"}


class Process(NamedTuple):
    """``at`` is the name of the next step. (What names other processes comes last: see `_LOOKS`.)"""

    at: str
    ticket: int = 0  # of its entry, while that stands
    left: int = 0  # the ticket that it had, while it leaves
    first: bool = False
    rung: bool = False  # a byte is in the bell
    turns: int = 1  # how often it still comes to wait
    seen: int = OUT  # who is ahead, or holds, as it was when looked at
    watched: int = OUT
    next: int = OUT


#: What can be told of a process without naming another one.
_LOOKS = slice(Process._fields.index("seen"))


class State(NamedTuple):
    """All there is: the file (as the kernel and the map have it), and the processes."""

    holder: int  # who has the lock of the slot
    joiner: int  # who has the JOIN lock
    tickets: int  # the last one given
    waited_for: bool
    first: int  # who noted that he is first
    bell: bool  # and whether he is to be rung
    processes: tuple[Process, ...]


def start(waiters: int, turns: int) -> State:
    """Return the state in which the slot is held and ``waiters`` come."""
    crew = [Process("release", turns=0), *(Process("try", turns=turns) for _ in range(waiters))]
    return State(0, OUT, 0, False, OUT, True, tuple(crew))


class Machine:
    """The steps that can follow a state."""

    def __init__(self, broken: str = "", kills: int = 1) -> None:
        assert not broken or broken in RULES
        self.broken = broken
        self.kills = kills

    def successors(self, state: State) -> Iterator[State]:
        """Return all states that one step leads to."""
        for who, process in enumerate(state.processes):
            if process.at in LOCAL:
                yield from getattr(self, "_" + process.at)(state, who, process)
                return
        for who, process in enumerate(state.processes):
            if process.at in ("dead", "done"):
                continue
            yield from getattr(self, "_" + process.at)(state, who, process)
            dead = sum(other.at == "dead" for other in state.processes)
            if dead < self.kills:
                yield self._kill(state, who)

    @staticmethod
    def _kill(state: State, who: int) -> State:
        state = _put(state, who, Process("dead"))  # its entry, too, ends with it
        return state._replace(
            holder=OUT if state.holder == who else state.holder,
            joiner=OUT if state.joiner == who else state.joiner,
        )

    # to take a slot without waiting, if there is one

    def _try(self, state: State, who: int, me: Process) -> Iterator[State]:
        if state.holder == OUT:
            yield _put(state._replace(holder=who), who, me._replace(at="release"))
        else:
            early = self.broken == "say it under the lock"
            yield _put(state, who, me._replace(at="announce" if early else "join"))

    # to join

    def _join(self, state: State, who: int, me: Process) -> Iterator[State]:
        if state.joiner == OUT:
            step = "stand" if self.broken == "say it under the lock" else "announce"
            yield _put(state._replace(joiner=who), who, me._replace(at=step))

    def _announce(self, state: State, who: int, me: Process) -> Iterator[State]:
        step = "join" if self.broken == "say it under the lock" else "stand"
        yield _put(state._replace(waited_for=True), who, me._replace(at=step))

    def _stand(self, state: State, who: int, me: Process) -> Iterator[State]:
        ticket = state.tickets + 1
        me = me._replace(at="joined", ticket=ticket)
        yield _put(state._replace(tickets=ticket), who, me)

    def _joined(self, state: State, who: int, me: Process) -> Iterator[State]:
        yield _put(state._replace(joiner=OUT), who, me._replace(at="drain"))

    # to wait

    def _drain(self, state: State, who: int, me: Process) -> Iterator[State]:
        if self.broken == "drain before looking":
            yield _put(state, who, me._replace(at="ahead"))
        else:
            yield _put(state, who, me._replace(at="ahead", rung=False))

    def _ahead(self, state: State, who: int, me: Process) -> Iterator[State]:
        ahead = _nearest(state, me.ticket, before=True)
        if me.first or ahead == OUT:
            early = self.broken == "lead before looking" and not me.first
            step = "take_unled" if early else "take" if me.first else "lead"
            yield _put(state, who, me._replace(at=step, first=True))
        elif self.broken == "watch who is ahead":
            yield _put(state, who, me._replace(at="sleep", watched=OUT))
        else:
            yield _put(state, who, me._replace(at="sleep", watched=ahead))

    def _take_unled(self, state: State, who: int, me: Process) -> Iterator[State]:
        if state.holder == OUT:
            yield _put(state._replace(holder=who), who, me._replace(at="clear"))
        else:
            yield _put(state, who, me._replace(at="lead_late", watched=state.holder))

    def _lead_late(self, state: State, who: int, me: Process) -> Iterator[State]:
        yield _put(state._replace(first=who, bell=True), who, me._replace(at="sleep"))

    def _lead(self, state: State, who: int, me: Process) -> Iterator[State]:
        yield _put(state._replace(first=who, bell=True), who, me._replace(at="take"))

    def _take(self, state: State, who: int, me: Process) -> Iterator[State]:
        if state.holder == OUT:
            yield _put(state._replace(holder=who), who, me._replace(at="clear"))
        else:
            yield _put(state, who, me._replace(at="look"))
            # or he waits for ever, and so may leave it to the kernel
            yield _put(state._replace(bell=False), who, me._replace(at="kernel"))

    def _kernel(self, state: State, who: int, me: Process) -> Iterator[State]:
        if state.holder == OUT:
            yield _put(state._replace(holder=who), who, me._replace(at="clear"))
        # or it takes the wait for a deadlock, or a signal handler raises
        step = "look" if self.broken == "listen again" else "listen"
        yield _put(state, who, me._replace(at=step))

    def _listen(self, state: State, who: int, me: Process) -> Iterator[State]:
        yield _put(state._replace(bell=True), who, me._replace(at="look"))

    def _look(self, state: State, who: int, me: Process) -> Iterator[State]:
        if state.holder == OUT:
            yield _put(state, who, me._replace(at="take"))
        elif state.holder == me.watched or self.broken == "watch the holder":
            yield _put(state, who, me._replace(at="sleep"))
        else:
            yield _put(state, who, me._replace(at="watch", seen=state.holder))

    def _watch(self, state: State, who: int, me: Process) -> Iterator[State]:
        # Opening a pidfd of a dead process fails, which is seen: look again.
        if self.broken == "watch before looking":
            gone = state.processes[me.seen].at == "dead"
            watched = OUT if gone else me.seen
            yield _put(state, who, me._replace(at="sleep", watched=watched))
        else:
            yield _put(state, who, me._replace(at="look", watched=me.seen))

    def _sleep(self, state: State, who: int, me: Process) -> Iterator[State]:
        died = me.watched != OUT and state.processes[me.watched].at == "dead"
        if me.rung or died:
            step = "woken" if self.broken == "drain before looking" else "drain"
            yield _put(state, who, me._replace(at=step, watched=OUT))
        # and time may be up at any moment
        if me.turns:
            yield _put(state, who, me._replace(at="clear", turns=0, watched=OUT))

    def _woken(self, state: State, who: int, me: Process) -> Iterator[State]:
        if me.first and state.holder == OUT:
            yield _put(state._replace(holder=who), who, me._replace(at="clear"))
        elif me.first:
            yield _put(state, who, me._replace(at="silence", watched=state.holder))
        else:
            ahead = _nearest(state, me.ticket, before=True)
            step = "lead" if ahead == OUT else "silence"
            yield _put(state, who, me._replace(at=step, watched=ahead, first=ahead == OUT))

    def _silence(self, state: State, who: int, me: Process) -> Iterator[State]:
        yield _put(state, who, me._replace(at="sleep", rung=False))

    # to leave the queue, served or not

    def _clear(self, state: State, who: int, me: Process) -> Iterator[State]:
        after = _nearest(state, me.ticket, before=False)
        if self.broken == "clear before ringing" and me.next == OUT and after != OUT:
            yield _ring(_put(state, who, me._replace(next=after)), after)
            return
        step = "list" if me.next == OUT else "left"
        if self.broken == "ring the next one":
            step = "left"
        gone = me._replace(at=step, ticket=0, left=me.ticket, first=False, seen=OUT, next=OUT)
        yield _put(state, who, gone)

    def _list(self, state: State, who: int, me: Process) -> Iterator[State]:
        after = _nearest(state, me.left, before=False)
        yield _put(state, who, me._replace(at="left" if after == OUT else "ring_next", next=after))

    def _ring_next(self, state: State, who: int, me: Process) -> Iterator[State]:
        yield _put(_ring(state, me.next), who, me._replace(at="left", next=OUT))

    def _left(self, state: State, who: int, me: Process) -> Iterator[State]:
        me = me._replace(left=0, next=OUT, watched=OUT)
        yield _put(state, who, me._replace(at="release" if state.holder == who else "again"))

    # to release

    def _release(self, state: State, who: int, me: Process) -> Iterator[State]:
        if self.broken == "unlock before ringing":
            if state.waited_for and state.first != OUT:
                state = _ring(state, state.first)
            yield _put(state, who, me._replace(at="unlock"))
        else:
            yield _put(state._replace(holder=OUT), who, me._replace(at="waited_for"))

    def _unlock(self, state: State, who: int, me: Process) -> Iterator[State]:
        yield _put(state._replace(holder=OUT), who, me._replace(at="again"))

    def _waited_for(self, state: State, who: int, me: Process) -> Iterator[State]:
        yield _put(state, who, me._replace(at="bell" if state.waited_for else "again"))

    def _bell(self, state: State, who: int, me: Process) -> Iterator[State]:
        # Without a bell he sleeps in the kernel, or has left, and then nobody may be waiting.
        yield _put(state, who, me._replace(at="first" if state.bell else "forget"))
        if not state.bell:
            yield _put(state, who, me._replace(at="again"))

    def _first(self, state: State, who: int, me: Process) -> Iterator[State]:
        yield _put(state, who, me._replace(at="ring", seen=state.first))

    def _ring(self, state: State, who: int, me: Process) -> Iterator[State]:
        first = me.seen
        gone = first in (OUT, who) or not state.processes[first].ticket
        if not gone:
            state = _ring(state, first)
        yield _put(state, who, me._replace(at="forget" if gone else "again", seen=OUT))

    def _forget(self, state: State, who: int, me: Process) -> Iterator[State]:
        nobody = not any(process.ticket for process in state.processes)
        if self.broken == "forget under the lock":
            yield _put(state, who, me._replace(at="say_nobody" if nobody else "again"))
        elif state.joiner == OUT:
            yield _put(state._replace(joiner=who), who, me._replace(at="forget_locked"))
        else:
            yield _put(state, who, me._replace(at="again"))

    def _forget_locked(self, state: State, who: int, me: Process) -> Iterator[State]:
        nobody = not any(process.ticket for process in state.processes)
        yield _put(state, who, me._replace(at="say_nobody" if nobody else "unjoin"))

    def _say_nobody(self, state: State, who: int, me: Process) -> Iterator[State]:
        yield _put(state._replace(waited_for=False), who, me._replace(at="unjoin"))

    def _unjoin(self, state: State, who: int, me: Process) -> Iterator[State]:
        joiner = OUT if state.joiner == who else state.joiner
        yield _put(state._replace(joiner=joiner), who, me._replace(at="again"))

    def _again(self, state: State, who: int, me: Process) -> Iterator[State]:
        if me.turns > 1:
            yield _put(state, who, Process("try", turns=me.turns - 1, rung=me.rung))
        else:
            yield _put(state, who, Process("done"))


def explore(begin: State, machine: Machine, limit: int = 3_000_000) -> tuple[int, State | None]:
    """Visit every state; return how many there are, and a wrong one if there is one."""
    begin = _settled(begin)
    seen = {begin}
    left = [begin]
    while left:
        state = left.pop()
        moved = False
        for after in machine.successors(state):
            # That one may be killed, or that his time may be up, wakes nobody who is owed it.
            moved = moved or not _only_by_accident(state, after)
            after = _settled(after)
            if after not in seen:
                seen.add(after)
                left.append(after)
        if not moved and state.holder == OUT and _sleepers(state):
            return len(seen), state
        assert len(seen) < limit
    return len(seen), None


def _settled(state: State) -> State:
    """Return the same state under the first of the names that its processes could have.

    Who is called what makes no difference, and neither do the numbers on the tickets.
    """
    crew = state.processes
    looks = [process[_LOOKS] for process in crew]
    order = sorted(range(len(crew)), key=looks.__getitem__)
    tickets = sorted({0, *[p.ticket for p in crew], *[p.left for p in crew]})
    last = len(tickets) - 1
    if order == [*range(len(crew))] and tickets[-1] == last == state.tickets:
        return state
    names = [order.index(who) for who in range(len(crew))] + [OUT]  # so that OUT is itself
    number = {ticket: index for index, ticket in enumerate(tickets)}
    return State(
        names[state.holder],
        names[state.joiner],
        last,
        state.waited_for,
        names[state.first],
        state.bell,
        tuple(
            # Not _replace(), which takes several times as long: this is done for every step.
            Process(
                at,
                number[ticket],
                number[left],
                first,
                rung,
                turns,
                names[seen],
                names[watched],
                names[after],
            )
            for at, ticket, left, first, rung, turns, seen, watched, after in [
                crew[who] for who in order
            ]
        ),
    )


def _only_by_accident(state: State, after: State) -> bool:
    for was, now in zip(state.processes, after.processes, strict=True):
        if now.at == "dead" != was.at or (was.at == "sleep" and now.at == "clear"):
            return True
    return False


def _sleepers(state: State) -> bool:
    return any(process.at == "sleep" for process in state.processes)


def _nearest(state: State, ticket: int, *, before: bool) -> int:
    """Return whose entry stands next to ``ticket``."""
    found = [
        (process.ticket, who)
        for who, process in enumerate(state.processes)
        if process.ticket and (process.ticket < ticket if before else process.ticket > ticket)
    ]
    return OUT if not found else (max(found) if before else min(found))[1]


def _put(state: State, who: int, process: Process) -> State:
    crew = state.processes
    return State(*state[:-1], (*crew[:who], process, *crew[who + 1 :]))


def _ring(state: State, who: int) -> State:
    process = state.processes[who]
    if process.at in ("dead", "done"):
        return state
    return _put(state, who, process._replace(rung=True))
