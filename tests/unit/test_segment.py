"""The memory beside messages: who has it, and when it is used again."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import resource
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mpkit import _segment
from mpkit._platform import memory
from mpkit._segment import MAPPED, MOST_BYTES, MOST_KEPT, clear, read, write
from tests.support import few_descriptors

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(not memory.HAS_MEMFD, reason="segments are used once there")

LARGE = MAPPED + 1000


@pytest.fixture(autouse=True)
def _nothing_kept() -> Iterator[None]:
    clear()
    yield
    clear()


def filled(size: int, content: bytes = b"x") -> memoryview:
    return memoryview(content * size)


def inode(fd: int) -> int:
    return os.fstat(fd).st_ino


def sent(size: int, content: bytes = b"x") -> tuple[int, int]:
    """Write a segment as a sender does; return what a receiver has of it."""
    loan, used = write([filled(size, content)])
    with contextlib.closing(loan):
        return os.dup(loan.fd), used


def used_inode(size: int) -> int:
    """Return which memory the next message gets."""
    fd, _ = sent(size)
    number = inode(fd)
    os.close(fd)
    return number


@pytest.mark.parametrize("size", [100, MAPPED - 2000, LARGE])
def test_a_segment_is_used_again_when_its_descriptor_was_closed(size: int) -> None:
    fd, used = sent(size)
    first = inode(fd)
    second = used_inode(size)
    assert second != first
    assert used_inode(size) == second
    os.close(fd)
    other, _ = sent(size)
    assert {inode(other), used_inode(size)} == {first, second}
    os.close(other)
    assert used > size


def test_a_segment_is_not_used_again_while_it_is_mapped() -> None:
    fd, used = sent(LARGE)
    first = inode(fd)
    (part,) = read(fd, used)
    os.close(fd)
    assert used_inode(LARGE) != first
    again = part[10:20]
    del part
    assert used_inode(LARGE) != first
    other, _ = sent(LARGE)
    del again
    assert used_inode(LARGE) == first
    os.close(other)


def test_what_was_read_leaves_the_segment_free_at_once() -> None:
    fd, used = sent(MAPPED // 2)
    first = inode(fd)
    (part,) = read(fd, used)
    os.close(fd)
    assert used_inode(MAPPED // 2) == first
    assert part == filled(MAPPED // 2)


def test_what_arrived_never_changes() -> None:
    """While any number of further messages are sent."""
    chosen = random.Random(4)
    held: list[tuple[memoryview, bytes, int]] = []
    for number in range(3000):
        size = chosen.choice([100, 20_000, MAPPED // 2, LARGE, 2 * LARGE])
        content = bytes([number % 256])
        fd, used = sent(size, content)
        (part,) = read(fd, used)
        os.close(fd)
        if len(held) == 20:
            part, content, size = _swapped(held, chosen.randrange(20), (part, content, size))
        else:
            held.append((part, content, size))
        assert part[:10] == part[-10:] == content * 10
        assert len(part) == size
    for part, content, size in held:
        assert part == filled(size, content)


def _swapped(
    held: list[tuple[memoryview, bytes, int]], place: int, new: tuple[memoryview, bytes, int]
) -> tuple[memoryview, bytes, int]:
    old, held[place] = held[place], new
    return old


def test_threads_never_share_a_segment() -> None:
    def send_and_receive() -> None:
        name = threading.get_ident().to_bytes(8, "little")
        for _ in range(300):
            loan, used = write([memoryview(name * 10_000)])
            (part,) = read(loan.fd, used)
            loan.close()
            assert part == name * 10_000

    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(send_and_receive) for _ in range(4)]:
            done.result()
    assert len(_segment._kept.sizes()) <= 4


def test_a_receiver_that_writes_changes_no_later_message() -> None:
    fd, used = sent(LARGE, b"a")
    (part,) = read(fd, used)
    os.close(fd)
    part[:] = filled(LARGE, b"b")
    del part
    fd, used = sent(LARGE, b"c")
    (part,) = read(fd, used)
    os.close(fd)
    assert part == filled(LARGE, b"c")


def test_a_smaller_message_does_not_take_a_large_segment() -> None:
    """To keep an array of 1 MB must not keep 100 MB."""
    large = used_inode(20 * LARGE)
    assert used_inode(LARGE) != large
    assert used_inode(11 * LARGE) == large
    assert sorted(_segment._kept.sizes())[0] < 2 * LARGE


def test_a_segment_grows_for_a_larger_message() -> None:
    first = used_inode(LARGE)
    fd, used = sent(3 * LARGE, b"y")
    assert inode(fd) == first
    (part,) = read(fd, used)
    os.close(fd)
    assert part == filled(3 * LARGE, b"y")
    del part
    fd, used = sent(2 * LARGE, b"z")
    assert inode(fd) == first
    (part,) = read(fd, used)
    os.close(fd)
    assert part == filled(2 * LARGE, b"z")


class TestTheBounds:
    def test_no_more_than_so_many_are_kept(self) -> None:
        fds = [sent(100)[0] for _ in range(3 * MOST_KEPT)]
        assert len(_segment._kept.sizes()) == MOST_KEPT
        for fd in fds:
            os.close(fd)

    def test_no_more_than_so_many_bytes_are_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_segment, "MOST_BYTES", 10 * LARGE)
        fds = [sent(3 * LARGE)[0] for _ in range(6)]
        assert len(_segment._kept.sizes()) == 3
        fds.append(sent(11 * LARGE)[0])
        assert max(_segment._kept.sizes()) < 4 * LARGE
        for fd in fds:
            os.close(fd)
        used_inode(9 * LARGE)
        assert sum(_segment._kept.sizes()) <= 10 * LARGE

    def test_what_is_free_makes_room(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_segment, "MOST_BYTES", 10 * LARGE)
        used_inode(8 * LARGE)
        small = used_inode(3 * LARGE)
        assert len(_segment._kept.sizes()) == 1
        assert used_inode(3 * LARGE) == small

    def test_those_that_a_receiver_never_lets_go_of_make_room(self) -> None:
        """So that others are still used again."""
        held = [sent(100)[0] for _ in range(MOST_KEPT)]
        for _ in range(3 * MOST_KEPT):
            used_inode(100)
        first = used_inode(100)
        assert used_inode(100) == first
        for fd in held:
            os.close(fd)

    def test_they_are_sensible(self) -> None:
        assert 0 < MOST_BYTES <= 512 * 1024 * 1024


def test_clear_gives_all_back_but_what_is_lent_lives_on() -> None:
    before = os.listdir("/dev/fd")
    fd, used = sent(LARGE, b"q")
    used_inode(LARGE)
    assert clear()
    assert not clear()
    (part,) = read(fd, used)
    os.close(fd)
    assert part == filled(LARGE, b"q")
    del part
    assert os.listdir("/dev/fd") == before


class TestWithoutMeans:
    def test_no_descriptor_is_said_in_words(self) -> None:
        with few_descriptors(0), pytest.raises(OSError, match="ulimit -n") as caught:
            write([filled(LARGE)])
        assert caught.value.errno == errno.EMFILE
        fd, _ = sent(LARGE)
        os.close(fd)

    def test_a_limit_for_files_is_said_in_words(self) -> None:
        """To the kernel the memory is a file."""
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (LARGE - 1, limits[1]))
        try:
            with pytest.raises(OSError, match="ulimit -f") as caught:
                write([filled(LARGE)])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert caught.value.errno == errno.EFBIG

    def test_one_descriptor_is_enough(self) -> None:
        with few_descriptors(1):
            loan, used = write([filled(LARGE, b"1")])
            (part,) = read(loan.fd, used)
        loan.close()
        assert part == filled(LARGE, b"1")

    def test_kept_segments_are_given_back_first(self) -> None:
        held = [sent(LARGE)[0] for _ in range(2)]
        with few_descriptors(0):
            loan, _ = write([filled(LARGE)])
        loan.close()
        for fd in held:
            os.close(fd)

    def test_no_memory_is_said_in_words(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        before = os.listdir("/dev/fd")
        monkeypatch.setattr(os, "pwrite", fail)
        with pytest.raises(OSError, match="no memory for the 1,0.* bytes of a message"):
            write([filled(LARGE)])
        assert os.listdir("/dev/fd") == before

    def test_other_errors_are_not_explained(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: object) -> int:
            raise TimeoutError("of a signal handler")

        monkeypatch.setattr(os, "pwrite", fail)
        with pytest.raises(TimeoutError, match="of a signal handler"):
            write([filled(LARGE)])

    def test_without_proc_or_locks_each_is_used_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: object) -> None:
            raise OSError(errno.ENOLCK, "no locks")

        monkeypatch.setattr("mpkit._segment.fcntl.flock", fail)
        first = used_inode(LARGE)
        assert used_inode(LARGE) != first
        assert not _segment._kept.sizes()

    def test_without_maps_it_is_written(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: object, **__: object) -> None:
            raise OSError(errno.ENOMEM, "no maps")

        monkeypatch.setattr("mpkit._platform.memory.mmap.mmap", fail)
        first = used_inode(LARGE)
        fd, used = sent(LARGE, b"w")
        assert inode(fd) == first
        assert read(fd, used) == [filled(LARGE, b"w")]
        os.close(fd)


@pytest.mark.parametrize("with_numpy", [True, False])
def test_what_is_copied_in_pieces_is_whole(
    with_numpy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_segment, "_AT_A_TIME", 1000)
    monkeypatch.setattr(_segment, "_AT_A_TIME_BESIDE", 30_000)
    if not with_numpy:
        monkeypatch.setitem(sys.modules, "numpy", None)
    size = 100_007
    before = used_inode(2 * size)
    content = random.Random(6).randbytes(size)
    loan, used = write([memoryview(b"stream"), memoryview(content)])
    with contextlib.closing(loan):
        assert inode(loan.fd) == before, "it has a mapping by now"
        assert [bytes(part) for part in read(loan.fd, used)] == [b"stream", content]


def test_a_child_that_is_forked_in_the_midst_of_a_copy_keeps_no_descriptor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not even of memory that the copying thread, which is not in the child, has in use."""
    os.close(sent(LARGE)[0])
    monkeypatch.setattr(_segment, "_AT_A_TIME", 1000)
    copying, go, copyto = threading.Event(), threading.Event(), np.copyto

    def copy(*args: Any) -> None:
        copying.set()
        assert go.wait(60)
        copyto(*args)

    raised: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", raised.append)  # by what a fork calls in the child
    monkeypatch.setattr(np, "copyto", copy)
    with ThreadPoolExecutor(1) as thread:
        message = thread.submit(sent, LARGE, b"y")
        assert copying.wait(60)
        pid = os.fork()
        if not pid:
            os._exit(len(_of_segments()) + 10 * len(raised))
        _, status = os.waitpid(pid, 0)
        go.set()
        fd, used = message.result(60)
    assert read(fd, used)[0] == filled(LARGE, b"y")
    os.close(fd)
    # Before Python 3.13 a map has a copy of its own.
    assert os.waitstatus_to_exitcode(status) == (sys.version_info < (3, 13))


def _of_segments() -> list[str]:
    links = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # it is what lists them
            links.append(os.readlink(f"/proc/self/fd/{fd}"))
    return [link for link in links if link.startswith("/memfd:mpkit")]
