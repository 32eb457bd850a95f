"""Context that goes with calls into workers: `propagate=`."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

import mpkit
from tests import poolwork

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

USER: contextvars.ContextVar[str] = contextvars.ContextVar("USER", default="nobody")
PAGE: contextvars.ContextVar[Any] = contextvars.ContextVar("PAGE")


@contextlib.contextmanager
def user(name: str) -> Iterator[None]:
    token = USER.set(name)
    try:
        yield
    finally:
        USER.reset(token)


def who(_: object = None, __: object = None) -> str:
    return f"{USER.get()} {PAGE.get('none')}"


def change() -> str:
    USER.set("an impostor")
    return who()


def die_once(path: str) -> str:
    with contextlib.suppress(FileExistsError):
        open(path, "x").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return who()


class Noting:
    """Carries a word, and notes when it comes and goes."""

    def __init__(self, path: str) -> None:
        self.path = path

    def capture(self) -> str:
        return USER.get()

    @contextlib.contextmanager
    def attach(self, captured: str, /) -> Generator[None, None, None]:
        poolwork.note(self.path, f"in-{captured}")
        try:
            yield
        finally:
            poolwork.note(self.path, f"out-{captured}")


class Broken:
    def capture(self) -> None: ...

    def attach(self, _: None, /) -> Any:
        raise ConnectionError("no tracer")


@pytest.fixture(params=[0, 2])
def pool(request: pytest.FixtureRequest, start_method: str) -> Iterator[mpkit.TaskPool]:
    with mpkit.TaskPool(request.param, propagate=[USER, PAGE]) as made:
        yield made


def test_each_kind_of_call_takes_the_context_of_who_makes_it(pool: mpkit.TaskPool) -> None:
    with user("ann"):
        task = pool.submit(who)
        later = pool.imap(who, range(3))
        unordered = pool.imap_unordered(who, range(2))
        mapped = pool.map_async(who, range(9))
        starred = pool.starmap_async(who, [(1, 2)], 1)
        executed = pool.executor.map(who, range(3), chunksize=2)
        submitted = pool.executor.submit(who)
        assert pool.apply(who) == pool.apply_async(who).get() == "ann none"
    with user("bob"):
        assert task.result() == submitted.result() == "ann none"
        assert [*later, *unordered] == ["ann none"] * 5
        assert [*mapped.result(), *starred.result(), *executed] == ["ann none"] * 13
        assert pool.apply(who) == "bob none"


def test_nothing_of_it_is_left_for_the_next_task(pool: mpkit.TaskPool) -> None:
    with user("ann"):
        assert pool.apply(change) == "an impostor none"
        assert pool.options(propagate=()).map(who, range(4), 1) == ["nobody none"] * 4
    assert pool.map(who, range(4), 1) == ["nobody none"] * 4


def test_without_it_nothing_travels(start_method: str) -> None:
    with mpkit.TaskPool(1) as plain, user("ann"):
        assert plain.apply(who) == "nobody none"
        assert plain.options(propagate=USER).apply(who) == "ann none"


def test_a_task_that_is_tried_again_has_it_again(start_method: str, tmp_path: Path) -> None:
    with mpkit.TaskPool(1, propagate=USER, retries=1) as pool, user("ann"):
        assert pool.apply(die_once, (str(tmp_path / "died"),)) == "ann none"


def test_it_goes_together_with_a_seed(start_method: str) -> None:
    with mpkit.TaskPool(1, propagate=USER, seed=1) as pool, user("ann"):
        assert pool.apply(who) == "ann none"
        assert pool.starmap(who, [(1, 2)] * 3) == ["ann none"] * 3


def test_tasks_of_asyncio_have_their_own(start_method: str) -> None:
    async def ask(pool: mpkit.TaskPool, name: str) -> str:
        with user(name):
            await asyncio.sleep(0)
            return await pool.submit(who)

    async def ask_both() -> list[str]:
        async with mpkit.TaskPool(1, propagate=USER) as pool:
            return await asyncio.gather(ask(pool, "ann"), ask(pool, "bob"))

    assert asyncio.run(ask_both()) == ["ann none", "bob none"]


def test_an_object_is_asked_once_for_a_call_and_is_around_each_item(
    start_method: str, tmp_path: Path
) -> None:
    log = str(tmp_path / "log")
    with mpkit.TaskPool(1, propagate=Noting(log)) as pool, user("ann"):
        pool.map(poolwork.square, range(3), chunksize=3)
        with pytest.raises(ValueError):
            pool.apply(poolwork.picky, (-1,))
    assert poolwork.notes(log) == ["in-ann", "out-ann"] * 4


def test_what_it_raises_in_a_worker_is_the_task_s_error(start_method: str) -> None:
    with mpkit.TaskPool(1, propagate=Broken()) as pool:
        with pytest.raises(ConnectionError, match="no tracer"):
            pool.apply(who)
        assert pool.options(propagate=[]).apply(poolwork.square, (2,)) == 4


def test_other_executors_carry_it_too() -> None:
    with ThreadPoolExecutor(1) as executor, mpkit.TaskPool(on=executor, propagate=USER) as pool:
        with user("ann"):
            assert pool.map(who, range(3)) == ["ann none"] * 3
        assert pool.apply(who) == "nobody none"


def test_what_cannot_be_carried_is_refused_where_it_is_asked_for(start_method: str) -> None:
    inner: contextvars.ContextVar[int] = contextvars.ContextVar("inner")
    with mpkit.TaskPool(1, propagate=PAGE) as pool:
        with pytest.raises(ValueError, match="cannot be found by workers"):
            pool.options(propagate=inner)
        wrong: list[Any] = [5, "USER", Noting, [USER, 5]]
        for one in wrong:
            with pytest.raises(TypeError, match="propagate takes context variables"):
                pool.options(propagate=one)
        token = PAGE.set(threading.Lock())
        try:
            with pytest.raises(mpkit.NotPicklable):
                pool.submit(who)
        finally:
            PAGE.reset(token)
        assert pool.apply(who) == "nobody none"


class Tracing:
    """OpenTelemetry's context, as docs/howto/context.md has it."""

    def capture(self) -> dict[str, str]:
        from opentelemetry import propagate

        carrier: dict[str, str] = {}
        propagate.inject(carrier)
        return carrier

    @contextlib.contextmanager
    def attach(self, captured: dict[str, str], /) -> Generator[None, None, None]:
        from opentelemetry import context, propagate

        token = context.attach(propagate.extract(captured))
        try:
            yield
        finally:
            context.detach(token)


def span(_: object = None) -> tuple[int, int, object]:
    from opentelemetry import baggage, trace

    here = trace.get_current_span().get_span_context()
    return here.trace_id, here.span_id, baggage.get_baggage("customer")


def test_a_trace_of_opentelemetry_goes_on_in_workers(start_method: str) -> None:
    pytest.importorskip("opentelemetry")
    from opentelemetry import baggage, context, trace

    parent = trace.NonRecordingSpan(trace.SpanContext(0xABC, 0xDEF, False, trace.TraceFlags(1)))
    around = baggage.set_baggage("customer", "7", trace.set_span_in_context(parent))
    with mpkit.TaskPool(1, propagate=Tracing()) as pool:
        token = context.attach(around)
        try:
            assert pool.map(span, range(3)) == [(0xABC, 0xDEF, "7")] * 3
            assert pool.options(propagate=()).apply(span) == (0, 0, None)
        finally:
            context.detach(token)
        assert pool.apply(span) == (0, 0, None)
