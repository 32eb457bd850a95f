"""What workers write for their parent to read: in order, whole, and never lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpkit._engine.schedule import MOST_IN_PACKET, Schedule
from mpkit._worker import journal
from mpkit._worker.journal import MOST_BYTES, Journal, Journals
from tests.support import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(params=["inherited", "opened"])
def journals(request: pytest.FixtureRequest) -> Iterator[Journals]:
    made = Journals(3, forks=request.param == "inherited")
    yield made
    made.close()


def opened(journals: Journals) -> tuple[int, Journal]:
    slot = journals.open()
    assert slot is not None
    writer = journals.journal(slot)
    writer.begin()
    return slot, writer


@settings(max_examples=30)
@given(rounds=st.lists(st.lists(st.integers(0, MOST_BYTES), max_size=2 * MOST_IN_PACKET + 8)))
def test_records_come_whole_and_in_order_however_often_it_wraps(rounds: list[list[int]]) -> None:
    journals = Journals(1, forks=True)
    slot, writer = opened(journals)
    for sizes in rounds:
        records = [bytes([number % 256]) * size for number, size in enumerate(sizes)]
        for record in records:
            writer.write(record)
        assert journals.unread(slot) == bool(records)
        assert list(journals.read(slot)) == records
        assert not journals.unread(slot)
    del writer
    journals.close()


def test_it_has_room_for_all_that_a_worker_may_report_wherever_it_begins(
    journals: Journals,
) -> None:
    slot, writer = opened(journals)
    largest = [bytes([number % 256]) * MOST_BYTES for number in range(2 * MOST_IN_PACKET)]
    for shift in range(0, 300_000, 1699):
        writer.write(b"x" * (shift % MOST_BYTES))
        list(journals.read(slot))
        for record in largest:
            writer.write(record)
        assert list(journals.read(slot)) == largest
    del writer


def test_what_was_not_counted_is_not_there(journals: Journals) -> None:
    """As when a worker is killed between the record and its count."""
    slot, writer = opened(journals)
    writer.write(b"whole")
    counted = writer._counts[writer._count]
    writer.write(b"half")
    writer._counts[writer._count] = counted
    assert list(journals.read(slot)) == [b"whole"]
    del writer


def test_who_sleeps_is_to_be_woken_once_by_each(journals: Journals) -> None:
    (first, one), (_, other) = opened(journals), opened(journals)
    assert not one.write(b"it is awake")
    assert journals.changed() == [first]
    assert journals.fall_asleep()
    assert one.write(b"1")
    assert not one.write(b"2")
    assert other.write(b"3")
    journals.wake_up()
    assert not other.write(b"4")
    assert not journals.fall_asleep(), "there is something to read"
    assert len(journals.changed()) == 2
    assert not journals.changed()
    assert journals.fall_asleep()
    assert one.write(b"in its next sleep")
    del one, other


def test_a_slot_is_given_to_one_at_a_time_and_begins_anew(journals: Journals) -> None:
    slots = [journals.open() for _ in range(4)]
    assert slots[3] is None
    assert len(set(slots)) == 4
    slot = slots[1]
    assert slot is not None
    writer = journals.journal(slot)
    writer.begin()
    writer.write(b"of the first worker")
    journals.give_back(slot)
    assert journals.open() == slot
    assert list(journals.read(slot)) == []
    writer = journals.journal(slot)
    writer.begin()
    writer.write(b"of the second")
    assert list(journals.read(slot)) == [b"of the second"]
    del writer


def test_a_writer_that_is_killed_leaves_what_it_has_written() -> None:
    journals = Journals(1, forks=True)
    slot = journals.open()
    assert slot is not None
    writer = journals.journal(slot)
    pid = os.fork()
    if not pid:
        writer.begin()
        for number in range(100_000):
            writer.write(b"%d" % number)
            if number == 99:
                os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    assert list(journals.read(slot)) == [b"%d" % number for number in range(100)]
    journals.close()


def test_there_is_room_for_what_it_has_to_hold() -> None:
    report = MOST_BYTES + 4
    assert report * (2 * MOST_IN_PACKET + 8) + MOST_BYTES <= journal._SIZE
    # Past the supervisor, while it is not crowded, callers send as much as is ahead of need.
    schedule = Schedule(1)
    schedule._seconds = 1e-9
    unread = journal._SIZE // 2
    assert unread + report * (schedule.most_ahead + 8) + MOST_BYTES <= journal._SIZE


def test_who_has_written_is_found_among_many() -> None:
    many = Journals(50, forks=True)
    writers = dict(opened(many) for _ in range(50))
    for slots in ([0], [49], [15, 16, 17], list(range(50)), []):
        for slot in slots:
            writers[slot].write(b"a record")
        assert many.changed() == slots
    writers.clear()
    many.close()


def test_who_writes_as_much_as_the_one_before_in_its_slot_is_heard() -> None:
    """Between two looks of the parent: nobody has told it that there was nothing in between."""
    journals = Journals(2, forks=True)
    for _ in range(3):
        slot = journals.open()
        assert slot is not None
        journal = journals.journal(slot)
        journal.begin()
        journal.write(b"report")
        assert not journals.fall_asleep()
        assert journals.changed() == [slot]
        assert list(journals.read(slot)) == [b"report"]
        journals.give_back(slot)


@given(
    st.lists(st.booleans(), max_size=40),
    st.integers(1, 5),
)
def test_what_is_taken_back_from_a_packet_is_not_begun(steps: list[bool], packet: int) -> None:
    """Whatever both do in whatever order, where each of their calls is one step."""
    journals = Journals(1, forks=True)
    slot, writer = opened(journals)
    begun = 0
    first = declined = -1
    for takes_back in steps:
        if takes_back and first < 0:
            first = journals.take_back(slot, packet)
            assert first == begun
        elif declined < 0 and writer.begin_task(packet, begun):
            begun += 1
        elif declined < 0:
            declined = begun
    assert declined in (-1, first)
    assert writer.begin_task(packet + 1, 0), "which is another packet"
    del writer
    journals.close()


RACE = """
import os, random, sys, time
from mpkit._worker.journal import Journals

ROUNDS, SIZE = 3000, 60
journals = Journals(1, forks=True)
slot = journals.open()
journal = journals.journal(slot)
reader, writer = os.pipe()
if not os.fork():
    journal.begin()
    for packet in range(1, ROUNDS + 1):
        os.read(reader, 1)
        begun = 0
        while begun < SIZE and journal.begin_task(packet, begun):
            begun += 1
        journal.write(b"%d %d" % (packet, begun))
    os._exit(0)

for packet in range(1, ROUNDS + 1):
    os.write(writer, b"!")
    after = random.randrange(SIZE)  # or when it has done all, as we may be late
    while journals._begun(slot, packet) < after and not journals.unread(slot):
        pass
    first = journals.take_back(slot, packet)
    while not journals.unread(slot):
        time.sleep(0)
    ((of, begun),) = (map(int, record.split()) for record in journals.read(slot))
    assert of == packet
    # What it has begun is not ours; and what it has not, the last one before ours or not at
    # all, it says.
    assert begun in (first, first - 1), (packet, first, begun)
print("each by one of us")
"""


def test_no_task_is_begun_by_both_or_none_however_they_meet() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", RACE], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert ran.stdout == "each by one of us\n", ran.stderr


def test_who_has_the_answer_has_read_all_or_nothing(journals: Journals) -> None:
    slot, writer = opened(journals)
    writer.write(b"first")
    since = journals.written(slot)
    writer.write(b"second")
    record, until = journals.since(slot, since)
    assert record == b"second"
    assert not journals.answer(slot, 7, since, until), "the first was not read"
    assert journals.since(slot, 0) == (b"first", 0), "nor is it all"
    assert list(journals.read(slot)) == [b"first", b"second"]
    assert not journals.answer(slot, 7, since, until), "nor is there anything to read"
    writer.write(b"third")
    record, end = journals.since(slot, until)
    writer.write(b"fourth")
    assert not journals.answer(slot, 7, until, end), "there is more by now"
    assert list(journals.read(slot)) == [b"third", b"fourth"]
    since = journals.written(slot)
    writer.write(b"fifth")
    assert journals.answer(slot, 7, since, journals.written(slot))
    assert journals.answered(slot) == 7
    assert not journals.unread(slot)
    assert not journals.read(slot)
    del writer


@given(sizes=st.lists(st.integers(0, MOST_BYTES), min_size=200, max_size=400))
@settings(max_examples=20)
def test_who_waits_for_a_record_finds_it_wherever_it_is(sizes: list[int]) -> None:
    journals = Journals(1, forks=True)
    slot, writer = opened(journals)
    for number, size in enumerate(sizes):
        since, record = journals.written(slot), bytes([number % 256]) * size
        writer.write(record)
        assert journals.since(slot, since) == (record, journals.written(slot))
        if number % 3:
            assert journals.answer(slot, number, since, journals.written(slot))
        else:
            assert journals.read(slot) == [record]
    del writer
    journals.close()
