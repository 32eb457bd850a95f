"""What workers say beside their reports: whole, in order, and once, however it is read."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mpkit
from mpkit._frames import Malformed
from mpkit._worker import logs
from mpkit._worker.aside import OUTPUT, RECORD, WARNING, Assembly, Said, pieces
from tests.process.test_pool_log import Kept, attached, count
from tests.support import until

if TYPE_CHECKING:
    from collections.abc import Sequence

SAID = st.builds(
    Said,
    st.sampled_from([RECORD, WARNING, OUTPUT]),
    st.integers(0, 2**64 - 1),
    st.binary(max_size=30).map(lambda part: part * 500),
)


def read_in_parts(assembly: Assembly, stream: bytes, cuts: Sequence[int]) -> list[Said]:
    said: list[Said] = []
    ends = sorted(cut % (len(stream) + 1) for cut in cuts)
    for start, end in zip([0, *ends], [*ends, len(stream)], strict=True):
        assembly.add(stream[start:end], said)
    return said


@given(st.lists(st.lists(SAID, max_size=4), max_size=4), st.data())
def test_messages_of_several_processes_come_whole_and_in_their_order(
    speakers: list[list[Said]], data: st.DataObject
) -> None:
    speakers = [[it._replace(task=pid) for it in its] for pid, its in enumerate(speakers)]
    left = {
        pid: [piece for n, said in enumerate(speaker) for piece in pieces(said, pid, n)]
        for pid, speaker in enumerate(speakers)
    }
    stream = b""
    while left := {pid: waiting for pid, waiting in left.items() if waiting}:
        stream += left[data.draw(st.sampled_from(sorted(left)))].pop(0)
    cuts = data.draw(st.lists(st.integers(0, 10**6), max_size=5))
    said = read_in_parts(Assembly(), stream, cuts)
    for pid, speaker in enumerate(speakers):
        assert [it for it in said if it.task == pid] == speaker
    assert len(said) == sum(map(len, speakers))


@given(st.lists(SAID, min_size=1, max_size=4), st.integers(0, 10**6))
def test_of_a_killed_speaker_whole_messages_arrive_and_no_part_of_one(
    spoken: list[Said], killed: int
) -> None:
    every = [list(pieces(said, 7, number)) for number, said in enumerate(spoken)]
    flat = [piece for message in every for piece in message]
    stream = flat[: killed % (len(flat) + 1)]  # a pipe takes each whole, or not at all
    said: list[Said] = []
    Assembly().add(b"".join(stream), said)
    whole, sent = 0, len(stream)
    for message in every:
        sent -= len(message)
        whole += sent >= 0
    assert said == spoken[:whole]


@given(st.binary(min_size=20, max_size=60))
def test_what_is_no_message_is_refused_or_awaited(garbage: bytes) -> None:
    said: list[Said] = []
    try:
        Assembly().add(b"\xff" + garbage, said)
    except Malformed:
        assert said == []
    else:
        raise AssertionError(said)


PLAIN = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text())


@given(
    st.lists(PLAIN, max_size=3), st.dictionaries(st.text().map("own {}".format), PLAIN, max_size=3)
)
def test_a_record_arrives_as_it_was(args: list[Any], extras: dict[str, Any]) -> None:
    text = "%s " * len(args)
    record = logging.makeLogRecord({**extras, "msg": text, "args": tuple(args), "levelno": 30})
    expected, facts = record.getMessage(), vars(record).copy()
    there = logs.unpack_record(logs.pack_record(record))
    assert there.getMessage() == expected
    assert {**vars(there), "message": 0} == {**facts, "message": 0}


@pytest.fixture(scope="module")
def heard() -> Kept:
    return Kept()


@pytest.mark.usefixtures("start_method")
def test_each_worker_is_heard_in_its_order(heard: Kept) -> None:
    with attached(heard), mpkit.TaskPool(2, log=True) as pool:

        @settings(max_examples=15, deadline=None)
        @given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 9000)), max_size=8))
        def check(asked: list[tuple[int, int]]) -> None:
            heard.records.clear()
            calls = [(number, records, size) for number, (records, size) in enumerate(asked)]
            pool.starmap(count, calls, chunksize=1)
            until(lambda: len(heard.records) == sum(records for records, _ in asked))
            places: dict[Any, list[tuple[float, int, int]]] = {}
            for record in heard.records:
                task, number, _ = record.args or ()
                places.setdefault(record.process, []).append((record.created, task, number))
            for place in places.values():
                assert place == sorted(place)
            assert os.getpid() not in places

        check()
