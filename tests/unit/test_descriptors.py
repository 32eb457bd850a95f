"""What is known of a descriptor that is ours, whatever a task does with its number."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import TYPE_CHECKING

import pytest

from mpkit._platform import descriptors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(params=["asked for", "looked at"])
def ours(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[socket.SocketType, Callable[[], bool]]]:
    """A socket, and what tells whether it is still there: as on Linux, and as elsewhere."""
    if request.param == "looked at":
        monkeypatch.setattr(descriptors, "LINUX", False)
    here, there = descriptors.socket_pair(100)
    with contextlib.closing(there), contextlib.closing(here):
        yield here, descriptors.watched(here.fileno())


def test_a_socket_is_there_until_it_is_closed(
    ours: tuple[socket.SocketType, Callable[[], bool]],
) -> None:
    here, is_there = ours
    assert is_there()
    here.send(b"x")
    assert is_there()
    here.close()
    assert not is_there()


def test_sockets_are_not_handed_to_programs_that_are_executed() -> None:
    for end in descriptors.socket_pair(100):
        assert not os.get_inheritable(end.fileno())
        end.close()


def test_what_has_its_number_is_not_taken_for_it(
    ours: tuple[socket.SocketType, Callable[[], bool]],
) -> None:
    here, is_there = ours
    first, second = descriptors.socket_pair(100)
    with contextlib.closing(first), contextlib.closing(second):
        os.dup2(first.fileno(), here.fileno())
        assert not is_there()
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, here.fileno())
    os.close(null)
    assert not is_there()


def test_a_copy_is_as_good(ours: tuple[socket.SocketType, Callable[[], bool]]) -> None:
    """A task that redirects what is there and puts it back has done no harm."""
    here, is_there = ours
    number = here.fileno()
    copy = os.dup(number)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, number)
    assert not is_there()
    os.dup2(copy, number)
    assert is_there()
    os.close(copy)
    os.close(null)
