"""`start` and `Job`: one call on a worker of a cluster, which may take as long as it likes.

It is a task of Dask that leaves its worker's thread pool when it begins. Before that it asks the
scheduler whether it may, which the first one of its name may: what Dask runs again, as it has
lost the worker, is not run by us. Its result is packed, and so is what it raises: what Dask
itself raises is never the user's.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import pickle
import threading
import uuid
from typing import TYPE_CHECKING, Any, Final, Generic, ParamSpec, Self, TypeVar

from mpkit import _call, _outcome, _pickling, _reader
from mpkit._describe import describe
from mpkit._errors import NotPicklable, ResultTimeout, SchedulerLost, WorkerDied
from mpkit.dask import _arrival, _broker, _message, _node
from mpkit.dask._client import check_process, client_of
from mpkit.dask._loop import patience
from mpkit.dask._node import dask

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from types import TracebackType

    from distributed import Client

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

_LOST: Final = b"l"

#: Bytes from which arguments are put on a worker by themselves, and not through the scheduler.
_LARGE: Final = 2**20

#: Jobs that have not ended, whether or not somebody still has them: Dask ends what nobody has.
_unfinished: set[Job[Any]] = set()


class Packed:
    """What comes of a job, as frames that Dask passes on as they are, without a copy."""

    def __init__(self, *frames: Any) -> None:
        self.frames = frames


def _know_packed() -> None:
    """Have Dask take the frames for its own; it would pickle them, in a protocol for schedulers."""
    protocol = dask("distributed.protocol")

    def parts(packed: Packed) -> tuple[dict[str, Any], list[Any]]:
        return {}, list(packed.frames)

    def whole(header: dict[str, Any], frames: list[Any]) -> Packed:
        return Packed(*frames)

    protocol.dask_serialize.register(Packed)(parts)
    protocol.dask_deserialize.register(Packed)(whole)


_know_packed()


class Job(Generic[R_co]):
    """A call that runs on a worker of a cluster, and its result.

    When its worker dies, or the scheduler gives it up, the job is lost: `result` raises
    `WorkerDied`, and it is not run again. `start` makes jobs. A job runs in a thread of a worker,
    beside its tasks: it takes none of the places for these, but shares the interpreter with them.
    Nothing can end such a thread from outside. Have it look at a `Signal`, or end when its channel
    does. When the program that has started it ends, it runs on until it sees that.

    As a context manager, a job is waited for when the block ends well. When the block raises, it
    is cancelled if it has not begun, and not waited for.

    Example:
        >>> from distributed import Client, LocalCluster
        >>> import mpkit.dask as mpkit
        >>> cluster = LocalCluster(n_workers=1, processes=False, dashboard_address=":0")
        >>> with cluster, Client(cluster), mpkit.start(pow, 2, 10) as job:
        ...     job.result(timeout=30)
        1024

    """

    def __init__(self, what: str = "", client: Client | None = None) -> None:
        """Not for users: `start` makes jobs."""
        if client is None:
            raise TypeError("mpkit.dask.start(function, ...) makes jobs; Job() makes none")
        self._what = f"job {what}"
        self._client: Any = client
        self._key = f"mpkit-job-{uuid.uuid4().hex}"
        self._cancelled = False
        #: What came of it, packed. It is done once, by the client's event loop.
        self._came: concurrent.futures.Future[Packed] = concurrent.futures.Future()
        self._came.set_running_or_notify_cancel()  # so that who awaits it cannot cancel it
        self._outcome: tuple[R_co | None, BaseException | None] | None = None
        self._opening = threading.RLock()
        self._passengers: list[_message.Movable] = []

    def __repr__(self) -> str:
        return f"<{self._what}: {'not ended' if self.is_alive() else 'ended'}>"

    def is_alive(self) -> bool:
        """Tell whether it has not ended yet; perhaps it has not begun, either."""
        return not self._came.done()

    def result(self, timeout: float | None = None) -> R_co:
        """Return what the call returned, blocking until it has.

        Args:
            timeout: seconds to wait; None waits for ever.

        Raises:
            ResultTimeout: it was not there in time. The job goes on.
            WorkerDied: its worker died before the call returned, or left the cluster.
            SchedulerLost: the connection to the cluster has ended.
            CancelledError: it was cancelled before it began.
            TaskExit: the call raised `SystemExit`.
            RemoteError: the call raised what cannot be raised here.
            NotPicklable: what the call returned cannot travel.
            Exception: whatever else the call raised, as of `mpkit.Job`.

        """
        value, error = self._opened(timeout)
        if error is not None:
            raise error
        return value  # type: ignore[return-value]  # it is R_co when there is no error

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what `result` would raise, or None if it would return.

        Args and errors are those of `result`, as far as waiting goes.
        """
        return self._opened(timeout)[1]

    def join(self, timeout: float | None = None) -> bool:
        """Wait until the call has ended, at most ``timeout`` seconds; tell if it has."""
        if self.is_alive():
            _node.check_thread(self._client, self._what)
            concurrent.futures.wait([self._came], timeout)
        return self._came.done()

    def cancel(self) -> bool:
        """Have the call not begin; tell whether it will not.

        Raises:
            SchedulerLost: the cluster cannot be asked, or did not answer within
                ``distributed.comm.timeouts.connect`` (30 s).
            RuntimeError: this is the event loop of the client, or a forked child.

        """
        if self._cancelled:
            return True
        if not self.is_alive():
            return False
        _node.check_thread(self._client, self._what)
        try:
            # Who asks first has it: the worker that would begin, or we.
            begin = getattr(self._client.scheduler, _broker.BEGIN)
            mine: bool = self._client.sync(begin, key=self._key, callback_timeout=patience())
        except (OSError, AttributeError) as error:
            raise self._lost(str(error)) from error
        if mine:
            self._cancelled = True
            with contextlib.suppress(OSError):
                self._client.cancel([self._future], force=True)
        return mine

    def terminate(self) -> None:
        """Cancel the call if it has not begun.

        Raises:
            RuntimeError: it runs. Nothing can end a thread of a worker; it was not asked to.

        """
        if not self.cancel() and self.is_alive():
            raise RuntimeError(
                f"{self._what} runs in a thread of a worker, which nothing can end from outside: "
                "give it a Signal to look at, or the end of a channel, and close the other one"
            )

    kill = terminate

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.join()
        else:
            with contextlib.suppress(SchedulerLost):
                self.cancel()

    def __await__(self) -> Generator[Any, None, R_co]:
        return self._result_async().__await__()

    async def _result_async(self) -> R_co:
        if self.is_alive() and not self._client.asynchronous:
            check_process(self._client)
        await asyncio.wait({asyncio.wrap_future(self._came)})
        return self.result()

    def _opened(self, timeout: float | None) -> tuple[R_co | None, BaseException | None]:
        if not self.join(timeout):
            raise ResultTimeout(self._what, timeout or 0.0)
        with self._opening:
            if self._outcome is None:
                self._outcome = self._open()
            return self._outcome

    def _open(self) -> tuple[R_co | None, BaseException | None]:
        error = self._came.exception()
        if error is not None:
            return None, error
        kind, *frames = self._came.result().frames
        if bytes(kind) == _LOST:
            why = "its worker died or left the cluster, and it is not run twice"
            return None, WorkerDied(self._what, None, None, why)
        try:
            if bytes(kind) == _outcome.FAILED:
                raised: _outcome.Raised = pickle.loads(frames[0], buffers=frames[1:])
                return None, raised.error()
            return _message.loads(tuple(frames)), None
        except Exception as failure:  # noqa: BLE001  by unpickling: what result() has to raise
            failure.add_note(f"(raised here while the result of {self._what} was unpickled)")
            return None, failure

    def _begin(self, frames: _message.Frames, passengers: list[_message.Movable]) -> None:
        """Have a worker run it."""
        self._passengers = passengers
        call: Any = list(frames)
        if _message.size_of(frames) >= _LARGE:
            (call,) = self._client.scatter([call], hash=False)
        self._future = self._client.submit(
            _arrival.begin, self._key, self._what, call, key=self._key, pure=False
        )
        _unfinished.add(self)
        asyncio.run_coroutine_threadsafe(self._watch(), self._client.loop.asyncio_loop)

    async def _watch(self) -> None:
        """Wait for what comes of it, in the client's event loop."""
        error: BaseException = self._lost("the client was closed")
        packed: Packed | None = None
        try:
            packed = await self._future
        except (Exception, asyncio.CancelledError) as failure:  # noqa: BLE001  all that Dask has
            error = self._explained(failure)
        finally:  # also if this is cancelled, when the loop ends
            for end in self._passengers:
                end._withdraw()  # does nothing to one that has come to its place
            _unfinished.discard(self)
            if packed is not None:
                self._came.set_result(packed)
            else:
                self._came.set_exception(error)
            self._future.release()

    def _explained(self, failure: BaseException) -> BaseException:
        """Return the error for what Dask says of a task that has no result."""
        killed: Any = failure
        if self._cancelled:
            return concurrent.futures.CancelledError(f"{self._what} was cancelled")
        if isinstance(failure, dask("distributed").KilledWorker):
            address = getattr(killed.last_worker, "address", "?")
            died = WorkerDied(self._what, None, None, f"its worker {address} died")
            died.__cause__ = failure
            return died
        if isinstance(failure, (asyncio.CancelledError, concurrent.futures.CancelledError)):
            if self._client.status != "running":
                return self._lost("the client was closed, or has lost the scheduler")
            why = f"the cluster has dropped it: {failure}"
            return WorkerDied(self._what, None, None, why)
        if isinstance(failure, OSError):  # the result, or the question to begin, was under way
            unknown = self._lost(str(failure))
            unknown.__cause__ = failure
            return unknown
        failure.add_note(f"(from Dask, which could not run {self._what})")
        return failure

    def _lost(self, why: str) -> SchedulerLost:
        address = getattr(self._client.scheduler, "address", "?")
        return SchedulerLost(f"what became of {self._what} is not known", str(address), why)


def start(fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Job[R]:
    """Call ``fn(*args, **kwargs)`` on a worker of the current client's cluster; return its `Job`.

    For one long-running companion, or a few; `TaskPool` is for many short calls. Which worker it
    is, Dask decides. It begins when a thread of that is free, and then leaves this to others.
    Channel ends among the arguments move there. What is defined in ``__main__`` travels by value.

    Raises:
        TypeError: ``fn`` cannot be called.
        NotPicklable: the function or an argument cannot travel. Nothing was started.
        ChannelClosed: an argument is the end of a channel that was closed or, as
            `ChannelMoved`, given away. Nothing was started.
        RuntimeError: there is no current client (``client.as_current()`` makes it that), or the
            scheduler has no mpkit.

    Example:
        >>> from distributed import Client, LocalCluster
        >>> cluster = LocalCluster(n_workers=1, processes=False, dashboard_address=":0")
        >>> with cluster, Client(cluster):
        ...     start(sorted, "bca", reverse=True).result(timeout=30)
        ['c', 'b', 'a']

    """
    if not callable(fn):
        raise TypeError(f"start() takes a function and its arguments, not {fn!r}")
    client = client_of(None)
    what = describe(fn)
    frames, passengers = _message.dumps((fn, args, kwargs), f"{what}(...)", _call.PARTS)
    try:
        _node.have_broker(client)
        job = Job[R](what, client)
        job._begin(frames, passengers)
    except BaseException:
        for end in passengers:
            end._remain()
        raise
    return job


def run(key: str, what: str, frames: list[Any]) -> Packed:
    """Run a job. The task of Dask."""
    worker = dask("distributed").get_worker()
    begin = getattr(worker.scheduler, _broker.BEGIN)
    if not dask("distributed.utils").sync(worker.loop, begin, key=key):
        return Packed(_LOST)
    dask("distributed").secede()
    came: list[Callable[[], None]] = []
    try:
        return _run(what, frames, came)
    finally:
        # With the end of the job its client gives up the places of those that have not come.
        for wait in came:
            wait()


def _run(what: str, frames: list[Any], came: list[Callable[[], None]]) -> Packed:
    """Run a job; add to ``came`` what waits for the ends of channels that came with it."""
    try:
        fn, args, kwargs = _message.loads(tuple(frames), came)
    except BaseException as error:  # noqa: BLE001  to be raised where the job is waited for
        error.add_note(f"(raised on the worker, which unpickled {what}(...))")
        _reader.note_missing(error)
        return _failed(what, error)
    try:
        value = fn(*args, **kwargs)
    except BaseException as error:  # noqa: BLE001
        return _failed(what, error)
    del args, kwargs
    try:
        return Packed(_outcome.DONE, *_message.dumps(value, "the result")[0])
    except NotPicklable as error:
        name = f"the result of a job ({describe(fn)})"
        named = NotPicklable(name, error.why, _pickling.shown(value))
        named.__cause__ = error.__cause__
        return _failed(what, named)
    except BaseException as error:  # noqa: BLE001  pickling is user code
        return _failed(what, error)


def _failed(what: str, error: BaseException) -> Packed:
    raised = _outcome.raised(what, error, skip_frames=1)
    error.__traceback__ = None  # its frames have the call's arguments, and so ends of channels
    frames, _ = _message.dumps(raised, f"the failure of {what}")
    return Packed(_outcome.FAILED, *frames)
