"""To ask the scheduler something, from any thread and any event loop.

A client has an event loop: its own, in a thread of its own; or, made for asyncio, the one in
which it was made. What is asked runs there. Who asks in a thread waits for the answer; who
asks in a coroutine, of that loop or another one, awaits it.

A question that its asker leaves (Ctrl-C, a cancelled task) is cancelled in that loop. Should
it have been answered meanwhile, then the answer is undone there: a slot is given back.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import sys
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from mpkit._errors import SchedulerLost
from mpkit.dask._client import check_process, client_of

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator
    from typing import TypeAlias

    from distributed import Client

    #: What runs in the loop of a client.
    Question: TypeAlias = "Callable[[], Coroutine[Any, Any, T]]"

T = TypeVar("T")

#: The clients of addresses, for as long as the process lives, and of which process they are: a
#: forked child makes its own, and keeps its parent's from being closed. Held: `_guard`.
_opened: dict[tuple[int, str], Client] = {}
_guard = threading.Lock()


def client_for(given: Client | str | None) -> Client:
    """Return what `client_of` does, but one client for all that give an address."""
    if isinstance(given, str):
        with _guard:
            ours = os.getpid(), given
            client = _opened.get(ours)
            if client is None or ended(client):
                try:
                    client = _opened[ours] = client_of(given)
                except OSError as error:
                    raise SchedulerLost("nothing was done", given, str(error)) from error
            return client
    return client_of(given, for_asyncio=True)


def client_again(known: Client | None, given: Client | str | None) -> Client:
    """Return the client that was used last, if it is still good, or else `client_for`.

    Raises:
        SchedulerLost: it is not, and there is no other.

    """
    if known is not None and not ended(known) and not isinstance(given, str):
        return known
    try:
        return client_for(given)
    except (RuntimeError, ValueError) as error:
        if known is None:
            raise
        raise lost(known, "nothing was done", "the client was closed") from error


def check_client(given: object) -> None:
    """Raise for what is no client, in the words of the one who passed it."""
    if given is not None:
        distributed = sys.modules.get("distributed")  # who has a client has imported it
        kinds: Any = str if distributed is None else (str, distributed.Client)
        if not isinstance(given, kinds):
            raise TypeError(f"client is a dask.distributed Client or an address, not {given!r}")


def ended(client: Client) -> bool:
    """Tell whether a client was closed, by somebody or because its scheduler has ended."""
    return client.status in ("closing", "closed")


def patience() -> float:
    """Return for how many seconds a scheduler may be silent, where somebody has a timeout."""
    return duration("distributed.comm.timeouts.connect")


def duration(setting: str) -> float:
    """Return what Dask is configured with, in seconds; infinity for `inf`."""
    from dask import config as half_typed  # noqa: PLC0415  an extra
    from dask.utils import parse_timedelta as half_typed_too  # noqa: PLC0415

    config: Any = half_typed
    parse: Any = half_typed_too
    value: Any = config.get(setting)
    return math.inf if value == "inf" else float(parse(value))


def ask(client: Client, question: Question[T], undo: Callable[[T], object] | None = None) -> T:
    """Return the answer to a question, in a thread that waits for it.

    Args:
        client: in whose loop it runs.
        question: it.
        undo: is called there with an answer that nobody waits for any more; None if that may
            stay as it is.

    Raises:
        RuntimeError: this thread runs that loop, and so would wait for itself. Or the loop is
            that of the parent, from which this process was forked.

    """
    if runs_here(client):
        raise RuntimeError(
            f"this thread runs the event loop of {client!r}, and cannot wait for an answer that "
            "comes through it: use `await` or `async with`, or asyncio.to_thread"
        )
    call = _Call(client, question, undo)
    try:
        error = call.answer.exception()
    except BaseException:
        call.leave()
        raise
    if error is not None:
        raise error
    return call.answer.result()


async def ask_async(
    client: Client, question: Question[T], undo: Callable[[T], object] | None = None
) -> T:
    """Return the answer to a question, in a coroutine of any loop. As `ask`."""
    if runs_here(client):
        return await question()
    call = _Call(client, question, undo)
    try:
        return await asyncio.wrap_future(call.answer)
    except asyncio.CancelledError:
        call.leave()
        raise


@contextlib.contextmanager
def asking(client: Client, what: str) -> Generator[None]:
    """Have a scheduler that cannot be asked be told as `SchedulerLost`."""
    try:
        yield
    except SchedulerLost:
        raise
    except OSError as error:  # of the connection; also a TimeoutError
        raise lost(client, what, str(error) or type(error).__name__) from error
    except (AttributeError, RuntimeError) as error:  # of what a closed client has no more
        if not ended(client):
            raise
        raise lost(client, what, "the client was closed") from error


def lost(client: Client, what: str, why: str) -> SchedulerLost:
    """Return the error that says so."""
    scheduler: Any = client.scheduler  # None, once the client was closed
    return SchedulerLost(what, "?" if scheduler is None else str(scheduler.address), why)


def runs_here(client: Client) -> bool:
    """Tell whether this thread runs the loop of a client, and so cannot wait for it."""
    try:
        return asyncio.get_running_loop() is _loop(client)
    except RuntimeError:  # none runs in this thread
        return False


def _loop(client: Client) -> asyncio.AbstractEventLoop:
    tornado: Any = client.loop
    loop: asyncio.AbstractEventLoop = tornado.asyncio_loop
    return loop


class _Call(Generic[T]):
    """A question in the loop of a client, for somebody elsewhere."""

    def __init__(
        self, client: Client, question: Question[T], undo: Callable[[T], object] | None
    ) -> None:
        check_process(client)
        self.answer: Future[T] = Future()
        self.answer.set_running_or_notify_cancel()  # so that who awaits it cannot cancel it
        self._question = question
        self._undo = undo
        self._loop = _loop(client)
        # The rest belongs to the loop.
        self._left = False
        self._task: asyncio.Task[T] | None = None
        with asking(client, "nothing was done"):
            try:
                self._loop.call_soon_threadsafe(self._begin)
            except RuntimeError as error:
                raise lost(client, "nothing was done", "the client was closed") from error

    def leave(self) -> None:
        """Have nobody wait for the answer any more."""
        with contextlib.suppress(RuntimeError):  # the loop was closed, and all that ran there
            self._loop.call_soon_threadsafe(self._leave)

    def _begin(self) -> None:
        self._task = self._loop.create_task(self._question())
        self._task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[T]) -> None:
        if task.cancelled():
            self.answer.set_exception(asyncio.CancelledError())
        elif (error := task.exception()) is not None:
            self.answer.set_exception(error)
        else:
            self.answer.set_result(task.result())
            if self._left and self._undo is not None:
                self._undo(task.result())

    def _leave(self) -> None:
        # After `_begin`: the loop runs what it is given in that order.
        task = self._task
        assert task is not None
        self._left = True
        if not task.done():
            task.cancel()
        elif self.answer.done() and self.answer.exception() is None and self._undo is not None:
            self._undo(self.answer.result())
