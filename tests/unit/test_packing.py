"""Calls on their way to a worker: functions by name where they have one."""

from __future__ import annotations

import contextlib
import functools
import os.path
import sys
import threading
from types import ModuleType
from typing import Any
from unittest.mock import patch

import pytest

import mpkit
from mpkit import NotPicklable
from mpkit._call import Call
from mpkit._frames import PACKET
from mpkit._parcel import MOST_INLINE
from mpkit._worker import packing, wire
from tests import poolwork


def travelled(fn: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any, Any]:
    data, parcel = packing.pack(Call(fn, args, kwargs), None)
    assert parcel is None
    return packing.unpack(data, [])


def without_cloudpickle() -> Any:
    return patch.dict(sys.modules, {"cloudpickle": None})


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module whose names change."""
    made = ModuleType("changing")
    monkeypatch.setitem(sys.modules, "changing", made)
    exec("def fn(): return 'first'", vars(made))
    return made


@pytest.mark.parametrize("fn", [poolwork.square, pow, os.path.join, functools.reduce])
def test_a_function_with_a_name_travels_as_that(fn: Any) -> None:
    data, parcel = packing.pack(Call(fn, (), {}), None)
    assert parcel is None
    assert data == bytes([len(data) - 1]) + f"{fn.__module__}\n{fn.__qualname__}".encode()
    assert packing.unpack(data, []) == (fn, (), {})
    assert travelled(fn, 1, [2], key="k") == (fn, (1, [2]), {"key": "k"})


@pytest.mark.parametrize(
    "fn",
    [
        dict,
        [].append,
        "text".join,
        str.upper,
        functools.partial(pow, 2),
        ModuleType("m").__repr__,
    ],
    ids=str,
)
def test_any_other_callable_travels_as_pickle_has_it(fn: Any) -> None:
    try:
        data, parcel = packing.pack(Call(fn, (3,), {}), None)
    except NotPicklable:
        return
    assert parcel is None
    assert data[0] == 0
    assert packing.unpack(data, [])[1:] == ((3,), {})


def test_a_name_that_means_another_function_by_now_is_not_sent(module: ModuleType) -> None:
    first = module.fn
    assert travelled(first) == (first, (), {})
    exec("def fn(): return 'second'", vars(module))
    with pytest.raises(NotPicklable, match="not the same object"), without_cloudpickle():
        packing.pack(Call(first, (), {}), None)
    assert travelled(module.fn)[0]() == "second"
    module.fn = first
    assert travelled(first)[0]() == "first"


def test_a_name_whose_module_is_another_thing_by_now_is_not_sent(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert travelled(module.fn)[0] is module.fn
    for instead in (3, None):
        monkeypatch.setitem(sys.modules, "changing", instead)
        assert packing._named(module.fn, None) is None
    module.fn.__module__ = ["no text"]
    assert packing._named(module.fn, None) is None


def test_a_name_of_an_argument_that_cannot_travel_is_named() -> None:
    class Word(str):
        __slots__ = ()

    with pytest.raises(NotPicklable, match="Word"), without_cloudpickle():
        travelled(poolwork.square, **{Word("n"): 3})


def test_a_worker_calls_what_has_the_name_there(module: ModuleType) -> None:
    """As pickle does: a module may have been changed by an earlier task."""
    data, _ = packing.pack(Call(module.fn, (), {}), None)
    assert packing.unpack(data, [])[0]() == "first"
    exec("def fn(): return 'changed'", vars(module))
    assert packing.unpack(data, [])[0]() == "changed"
    del module.fn
    with pytest.raises(AttributeError, match="fn"):
        packing.unpack(data, [])
    vars(module)["__getattr__"] = lambda name: f"made for {name}"
    assert packing.unpack(data, [])[0] == "made for fn"


def test_a_name_that_is_too_long_is_left_to_pickle(module: ModuleType) -> None:
    name = "f" * 300
    exec(f"def {name}(): return 'long'", vars(module))
    fn = getattr(module, name)
    data, _ = packing.pack(Call(fn, (), {}), None)
    assert data[0] == 0
    assert travelled(fn)[0] is fn


def test_what_is_known_of_functions_is_bounded(module: ModuleType) -> None:
    for number in range(packing._MOST_KNOWN + 10):
        exec(f"def f{number}(): pass", vars(module))
        packing.pack(Call(getattr(module, f"f{number}"), (), {}), None)
    assert len(packing._known) <= packing._MOST_KNOWN


def each(fn: Any, chunk: list[Any]) -> tuple[bytes, bytes, Any]:
    data, parcel, common = packing.Each(fn, None).pack(chunk)
    assert parcel is None
    return data, common, packing.unpack_each(common, data, []) if common else None


@pytest.mark.parametrize("fn", [poolwork.square, functools.partial(pow, 2)], ids=str)
def test_tasks_of_one_function_travel_without_it(fn: Any) -> None:
    data, common, arrived = each(fn, [3, [4]])
    there, chunk = arrived
    assert (there(3), chunk) == (fn(3), [3, [4]])
    assert data not in common
    assert b"square" not in data


def test_a_large_function_travels_with_each_task() -> None:
    data, common, _ = each(functools.partial(max, bytes(packing._MOST_COMMON)), [b"3"])
    assert common == b""
    call, (fn, chunk), kwargs = packing.unpack(data, [])
    assert call(fn, chunk, **kwargs) == [(True, b"3")]


@pytest.mark.parametrize("spare", range(-300, 300, 60))
def test_a_chunk_and_its_function_fit_in_a_packet(spare: int) -> None:
    """Or else they travel as any other call does."""
    chunk = [bytes(MOST_INLINE - spare)]
    data, parcel, common = packing.Each(poolwork.square, None).pack(chunk)
    if parcel is not None:
        with contextlib.closing(parcel):
            data, _ = parcel.seal(data)
    assert len(wire.encode_run([(1, data)], common=common)) <= PACKET


@pytest.mark.parametrize("spare", [300, 1000, 2000, 3000, 4000])
def test_a_chunk_with_a_channel_and_its_function_fit_in_a_packet(spare: int) -> None:
    ours, theirs = mpkit.channel()
    with ours, theirs:
        chunk = [theirs, bytes(MOST_INLINE - spare)]
        data, parcel, common = packing.Each(functools.partial(max, bytes(3000)), None).pack(chunk)
        assert parcel is not None
        with contextlib.closing(parcel):
            data, fds = parcel.seal(data)
            assert fds
            assert len(wire.encode_run([(1, data)], common=common)) <= PACKET


def test_small_chunks_are_packed_together_as_each_by_itself() -> None:
    square = packing.Each(poolwork.square, None)
    chunks: list[list[Any]] = [[1], [2.5, "three"], [None, True], []]
    assert square.pack_small(chunks) == [square.pack(chunk)[0] for chunk in chunks]


@pytest.mark.parametrize("item", [[4], (4,), poolwork.square, "x" * MOST_INLINE], ids=type)
def test_what_is_large_or_is_pickled_by_code_of_the_users_is_packed_by_itself(item: Any) -> None:
    assert packing.Each(poolwork.square, None).pack_small([[1], [item]]) is None


def test_chunks_of_a_large_function_are_packed_one_by_one() -> None:
    large = functools.partial(max, bytes(packing._MOST_COMMON))
    assert packing.Each(large, None).pack_small([[1], [2]]) is None


def test_what_cannot_travel_to_an_imap_is_named() -> None:
    with pytest.raises(NotPicklable, match="the function"), without_cloudpickle():
        packing.Each(lambda: 3, None)
    with pytest.raises(NotPicklable, match="an item for tests.poolwork.square"):
        packing.Each(poolwork.square, None).pack([threading.Lock()])
