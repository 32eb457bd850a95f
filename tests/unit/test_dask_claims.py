"""The claims in a scheduler: whatever comes in whatever order, a packet is begun with once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

pytest.importorskip("distributed")

from hypothesis import given
from hypothesis import strategies as st

from mpkit.dask._claims import NAME, REPORT, Claims


class Worker:
    nthreads = 2

    def __init__(self, *numbers: int) -> None:
        self.processing = {TaskState(("pool", number)) for number in numbers}


class TaskState:
    def __init__(self, key: Any) -> None:
        self.key = key


class Scheduler:
    """As much of Dask's as the plugin uses."""

    def __init__(self) -> None:
        self.handlers: dict[str, Any] = {}
        self.stream_handlers: dict[str, Any] = {}
        self.workers = {"a": Worker(), "b": Worker()}
        self.sent: list[tuple[str, dict[str, Any]]] = []

    def coerce_address(self, address: str) -> str:
        return address.removeprefix("host of ")

    def send_all(self, client_msgs: dict[str, list[dict[str, Any]]], worker_msgs: object) -> None:
        for client, messages in client_msgs.items():
            self.sent += [(client, message["event"][1]) for message in messages]


@pytest.fixture
def scheduler() -> Scheduler:
    return Scheduler()


@pytest.fixture
def claims(scheduler: Scheduler) -> Claims:
    claims = Claims()
    asyncio.run(claims.start(scheduler))
    assert claims.open("pool", "client") == {"threads": 4}
    return claims


def test_it_answers_under_names_of_its_own(scheduler: Scheduler, claims: Claims) -> None:
    assert all(name.startswith(NAME) for name in [*scheduler.handlers, *scheduler.stream_handlers])
    assert scheduler.stream_handlers[REPORT] == claims.report


def test_a_packet_is_granted_once(claims: Claims) -> None:
    assert claims.claim("pool", 0, "host of a", 11)
    assert not claims.claim("pool", 0, "a", 11)
    assert not claims.claim("pool", 0, "b", 12)
    assert claims.withdraw("pool", 0) is False
    assert claims.withdraw("pool", 1) is True
    assert not claims.claim("pool", 1, "b", 12)


def test_nothing_is_granted_to_who_is_gone(scheduler: Scheduler, claims: Claims) -> None:
    del scheduler.workers["b"]
    assert not claims.claim("pool", 0, "b", 12)
    assert claims.claim("pool", 0, "a", 11)
    assert not claims.claim("other", 0, "a", 11)
    assert claims.withdraw("other", 0) is None
    claims.remove_client(scheduler, "client")
    assert not claims.claim("pool", 1, "a", 11)


def test_reports_are_passed_on_from_who_holds_the_claim(
    scheduler: Scheduler, claims: Claims
) -> None:
    claims.claim("pool", 0, "a", 11)
    claims.report("pool", 0, "b", last=False, outcomes=b"false")
    claims.report("pool", 1, "a", last=False, outcomes=b"false")
    claims.report("none", 0, "a", last=False, outcomes=b"false")
    assert not scheduler.sent
    claims.report("pool", 0, "a", last=False, outcomes=b"one")
    claims.report_now("pool", 0, "host of a", last=True, outcomes=b"two")
    claims.report("pool", 0, "a", last=True, outcomes=b"again")
    assert scheduler.sent == [
        ("client", {"number": 0, "worker": "a", "pid": 11, "outcomes": b"one"}),
        ("client", {"number": 0, "worker": "a", "pid": 11, "outcomes": b"two"}),
    ]


def test_what_a_lost_worker_held_is_told_and_nothing_else_of_it_is_heard(
    scheduler: Scheduler, claims: Claims
) -> None:
    for number, worker in enumerate("abaa"):
        claims.claim("pool", number, worker, 11)
    claims.report("pool", 3, "a", last=True)
    scheduler.sent.clear()
    del scheduler.workers["a"]
    claims.remove_worker(scheduler, "a")
    assert scheduler.sent == [("client", {"gone": "a", "lost": [(0, 11), (2, 11)], "threads": 2})]
    claims.report("pool", 0, "a", last=True, outcomes=b"late")
    assert len(scheduler.sent) == 1
    assert claims.end("pool") == [1]
    assert claims.end("pool") == []


def test_what_waits_behind_a_long_call_is_taken_back_for_who_is_idle(
    scheduler: Scheduler, claims: Claims
) -> None:
    scheduler.workers = {"a": Worker(0, 1, 2), "b": Worker(3, 4)}
    scheduler.workers["a"].processing.add(TaskState("of somebody else"))
    for number, worker in [(0, "a"), (1, "a"), (3, "b"), (4, "b")]:
        claims.claim("pool", number, worker, 11)
    claims.report("pool", 0, "a", last=False, long=True)
    assert len(scheduler.sent) == 1  # nobody is idle
    claims.report("pool", 3, "b", last=True)
    assert scheduler.sent[2:] == [("client", {"back": [2], "workers": ["b"]})]
    assert not claims.claim("pool", 2, "a", 11)
    claims.report("pool", 4, "b", last=True)
    claims.report("pool", 0, "a", last=True)
    assert len(scheduler.sent) == 5
    assert not claims._pools["pool"].long


def test_the_size_of_the_cluster_is_told(scheduler: Scheduler, claims: Claims) -> None:
    scheduler.workers["c"] = Worker()
    claims.add_worker(scheduler, "c")
    assert scheduler.sent == [("client", {"threads": 6})]


ASKED = st.lists(
    st.tuples(st.sampled_from(["claim", "withdraw"]), st.integers(0, 30), st.sampled_from("ab"))
)


@given(ASKED)
def test_each_packet_has_one_owner_and_what_is_kept_has_bounds(
    asked: list[tuple[str, int, str]],
) -> None:
    claims = Claims()
    asyncio.run(claims.start(Scheduler()))
    claims.open("pool", "client")
    owners: dict[int, int] = {}
    for what, number, worker in asked:
        if what == "claim":
            had = claims.claim("pool", number, worker, 1)
        else:
            had = claims.withdraw("pool", number) is True
        owners[number] = owners.get(number, 0) + had
    assert set(owners.values()) <= {1}
    taken = claims._pools["pool"]._taken
    first = next(number for number in range(32) if number not in owners)
    assert taken == {number for number in owners if number > first}
