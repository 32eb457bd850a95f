"""What all workers of a pool read: `TaskPool(shared=...)`."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

import mpkit
from mpkit._platform import memory
from tests import poolwork

if TYPE_CHECKING:
    from multiprocessing.context import BaseContext
    from pathlib import Path


class Noted:
    """Notes in a file when it is pickled, and when it is unpickled, and by whom."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        poolwork.note(self.path, f"pickled-{os.getpid()}")
        return made, (self.path,)


def made(path: str) -> Noted:
    poolwork.note(path, f"unpickled-{os.getpid()}")
    return Noted(path)


def look_up(key: str) -> tuple[Any, int]:
    return mpkit.shared()[key], os.getpid()


def kind_of(_: object = None) -> str:
    return type(mpkit.shared()).__name__


def keep() -> None:
    mpkit.worker_state()["kept"] = mpkit.shared()


def is_kept(_: object) -> bool:
    return mpkit.worker_state()["kept"] is mpkit.shared()


def note_shared() -> None:
    poolwork.note(mpkit.shared()["path"], "finalized")


def where(_: object) -> tuple[int, list[str], bool, bool, float]:
    """Return who this is, which memory it maps, and what it can do with the array."""
    array = mpkit.shared()["array"]
    with open("/proc/self/maps") as file:
        maps = [line.split(maxsplit=5) for line in file]
    shared = [words[4] for words in maps if words[-1].startswith("/memfd:mpkit")]
    return os.getpid(), shared, array.flags.owndata, array.flags.writeable, float(array.sum())


def write(_: object) -> None:
    mpkit.shared()["array"][0] = 5


def open_files(pid: int) -> list[str]:
    files: list[str] = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # it was that of the list itself
            files.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
    return files


def shared_in_a_nested_pool() -> str:
    with mpkit.TaskPool(1) as pool:
        with pytest.raises(RuntimeError, match="nothing is shared here"):
            pool.apply(kind_of)
    with mpkit.TaskPool(1, shared=[1]) as pool:
        with mpkit.TaskPool(0, shared=(1,)) as here:
            return f"{pool.apply(kind_of)} {here.apply(kind_of)} {kind_of()}"


def test_tasks_read_what_is_shared(start_method: str) -> None:
    with mpkit.TaskPool(2, shared={"a": [1], "b": 2}) as pool:
        assert [value for value, _ in pool.map(look_up, "abab", chunksize=1)] == [[1], 2, [1], 2]


def test_it_is_pickled_once_and_unpickled_once_by_each_that_asks(
    start_method: str, tmp_path: Path
) -> None:
    log = str(tmp_path / "log")
    with mpkit.TaskPool(2, shared=Noted(log)) as pool:
        pool.apply(poolwork.square, (2,))
        assert poolwork.notes(log) == [f"pickled-{os.getpid()}"]
        assert set(pool.map(kind_of, range(20), chunksize=1)) == {"Noted"}
        said = poolwork.notes(log)
        assert len(set(said)) == len(said)
        assert sum(note.startswith("pickled") for note in said) == 1
        assert 2 <= len(said) <= 3


def test_a_worker_that_replaces_a_dead_one_has_it_as_it_was(start_method: str) -> None:
    table = {"a": 1}
    with mpkit.TaskPool(1, shared=table) as pool:
        _, first = pool.apply(look_up, ("a",))
        table["a"] = 2
        with pytest.raises(mpkit.WorkerDied):
            pool.apply(os.kill, (first, signal.SIGKILL))
        value, other = pool.apply(look_up, ("a",))
    assert (value, other != first) == (1, True)


def test_initializers_and_finalizers_read_it(start_method: str, tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    for workers in (0, 1):
        with mpkit.TaskPool(workers, keep, finalizer=note_shared, shared={"path": log}) as pool:
            assert pool.map(is_kept, range(3)) == [True] * 3
    assert poolwork.notes(log) == ["finalized"] * 2


@pytest.mark.skipif(not memory.HAS_MEMFD, reason="memory has no name to be known by here")
def test_large_arrays_are_in_memory_that_all_have_and_nobody_can_write(start_method: str) -> None:
    numpy = pytest.importorskip("numpy")
    array = numpy.ones(1_000_000)
    with mpkit.TaskPool(2, shared={"array": array, "name": "ones"}) as pool:
        found = pool.map(where, range(20), chunksize=1)
        with pytest.raises(ValueError, match="read-only"):
            pool.apply(write, (0,))
    array[:] = 7  # which is still ours
    inodes = {tuple(shared) for _, shared, *_ in found}
    assert len(inodes) == 1
    assert {tuple(facts) for _, _, *facts in found} == {(False, False, 1_000_000.0)}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_it_lies_nowhere_where_it_could_be_left(context: BaseContext) -> None:
    """If all are killed at once, the kernel frees it: no file has its name."""
    before = set(open_files(os.getpid()))  # the runtime directory, if a test has used it
    with mpkit.TaskPool(1, context=context, shared=bytes(2**21)) as pool:
        assert pool.apply(kind_of) == "bytes"
        for pid in (os.getpid(), pool.apply(os.getpid)):
            files = set(open_files(pid)) - before
            named = [file for file in files if file.startswith(("/dev/shm/", "/tmp/mpkit"))]
            assert not [file for file in named if not file.endswith("(deleted)")]


def test_each_pool_has_its_own(start_method: str) -> None:
    with mpkit.TaskPool(1, shared={"outer": True}) as pool:
        assert pool.apply(shared_in_a_nested_pool) == "list tuple dict"


def add_to(key: str, number: int) -> object:
    mpkit.shared()[key].append(number)
    return mpkit.shared()[key]


def test_tasks_that_run_here_have_the_object_itself() -> None:
    table = {"a": [1]}
    with mpkit.TaskPool(0, shared=table) as pool:
        assert pool.apply(add_to, ("a", 2)) == [1, 2]
    assert table == {"a": [1, 2]}
    with pytest.raises(RuntimeError, match="shared="):
        mpkit.shared()


def test_a_pool_that_shares_nothing_says_so(start_method: str) -> None:
    with mpkit.TaskPool(1) as pool, pytest.raises(RuntimeError, match=r"TaskPool\(shared="):
        pool.apply(kind_of)


def test_what_cannot_be_shared_is_refused() -> None:
    with pytest.raises(mpkit.NotPicklable, match="what the pool shares"):
        mpkit.TaskPool(1, shared=(number for number in range(3)))
    with ThreadPoolExecutor(1) as executor:
        with pytest.raises(ValueError, match="shared= makes no sense"):
            mpkit.TaskPool(on=executor, shared=[1])


def broken() -> Any:
    raise LookupError("no such model")


class Broken:
    def __reduce__(self) -> Any:
        return broken, ()


def test_what_cannot_be_unpickled_is_the_error_of_the_tasks_that_ask(start_method: str) -> None:
    with mpkit.TaskPool(1, shared=Broken()) as pool:
        assert pool.apply(poolwork.square, (2,)) == 4
        for _ in range(2):
            with pytest.raises(LookupError, match="no such model") as caught:
                pool.apply(kind_of)
            assert "what its pool shares" in caught.value.__notes__[0]


def close_and_count(end: mpkit.Channel[int, int]) -> None:
    mpkit.worker_state()["end"] = end


def answer(number: int) -> None:
    mpkit.worker_state()["end"].send(number)


def test_a_channel_among_the_initargs_moves_to_the_worker(start_method: str) -> None:
    here, there = mpkit.channel(send=int, recv=int)
    with mpkit.TaskPool(1, close_and_count, (there,)) as pool:
        pool.apply(answer, (5,))
        assert here.recv(timeout=30) == 5
    here.close()
