"""The file of a trace, which is valid JSON all the while."""

from __future__ import annotations

import json
import os
import resource
from typing import TYPE_CHECKING, Any

import pytest

from mpkit._task.options import Options
from mpkit._task.task import Task
from mpkit._watch.recorder import Recorder
from mpkit._watch.trace import MOST_EVENTS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    made = Recorder()
    made.worker_started(7)
    yield made
    made.close()


def events(path: Path) -> list[dict[str, Any]]:
    content = json.loads(path.read_bytes())
    found: list[dict[str, Any]] = content["traceEvents"]
    return found


def run(recorder: Recorder, count: int = 1, name: str = "f") -> None:
    spans = [(Task[Any](name, Options()), 1.0, 2.0, False) for _ in range(count)]
    recorder.tasks_ended(7, spans, [(10, 20)] * count)


def test_it_is_valid_from_the_first_moment_on(recorder: Recorder, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    trace = recorder.trace(path)
    assert len(events(path)) == 1
    known = 1
    for _ in range(5):
        run(recorder, MOST_EVENTS)
        written = len(events(path))
        assert known < written <= known + 2 * MOST_EVENTS
        known = written
    trace.close()
    kinds = [event["ph"] for event in events(path)]
    assert kinds.count("X") == 5 * MOST_EVENTS
    assert not trace._events, "nothing is kept"


def test_names_are_any_text(recorder: Recorder, tmp_path: Path) -> None:
    name = 'a "quoted"\n\ud800 name \u2028'
    with recorder.trace(tmp_path / "run.json"):
        run(recorder, name=name)
    (span,) = [event for event in events(tmp_path / "run.json") if event["ph"] == "X"]
    assert name in span["name"]
    assert span["args"]["bytes_sent"] == 10
    assert span["args"]["bytes_received"] == 20


def test_a_file_that_cannot_be_written_is_told_at_once(recorder: Recorder, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        recorder.trace(tmp_path / "nowhere" / "run.json")
    reader, writer = os.pipe()
    with pytest.raises(OSError, match="seek"):
        recorder.trace(f"/dev/fd/{writer}")
    os.close(reader)
    os.close(writer)
    assert not recorder.pictured


def test_a_disk_that_is_full_ends_a_trace_and_not_its_pool(
    recorder: Recorder, tmp_path: Path
) -> None:
    path = tmp_path / "run.json"
    trace = recorder.trace(path)
    run(recorder, MOST_EVENTS)
    whole = len(events(path))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 1000, before[1]))
    try:
        for _ in range(3):
            run(recorder, 2 * MOST_EVENTS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(events(path)) == whole, "it ends where it was whole"
    with pytest.raises(OSError, match="too large"):
        trace.close()
    trace.close()


def test_a_forked_child_writes_nothing(recorder: Recorder, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    trace = recorder.trace(path)
    run(recorder, 10)
    before = path.read_bytes()
    pid = os.fork()
    if not pid:
        trace.close()
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert path.read_bytes() == before
    trace.close()
    assert len([event for event in events(path) if event["ph"] == "X"]) == 10
