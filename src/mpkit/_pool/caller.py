"""How calls get from a pool's facade to what it runs on: one by one, as maps, as they are consumed."""

from __future__ import annotations

import itertools
import math
from collections.abc import AsyncIterable, Sized
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from mpkit._call import Call
from mpkit._describe import describe
from mpkit._engine.shortcut import Volley
from mpkit._pickling import Stays
from mpkit._pool import progress as progress_
from mpkit._pool.async_input import Awaited
from mpkit._pool.gather import Gather
from mpkit._pool.inline import Inline
from mpkit._pool.lazy import LazyResults, run_each_here
from mpkit._pool.lookahead import AHEAD, Lookahead
from mpkit._pool.results import Results
from mpkit._task import carriage
from mpkit._task.options import whole_number
from mpkit._task.task import Task
from mpkit._worker import chunks, packing
from mpkit._worker.slices import MANY, SLICE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from mpkit._engine.backend import Backend
    from mpkit._pool.gather import Slice
    from mpkit._pool.progress import Progress
    from mpkit._task.options import Options
    from mpkit._worker.packing import Chunk

R = TypeVar("R")
T = TypeVar("T")


class Caller(Stays):
    """What the methods of `Calls` have in common."""

    def __init__(
        self,
        backend: Backend,
        options: Options,
        owner: object,
        numbers: itertools.count[int] | None = None,
    ) -> None:
        """Not for users: pools make them."""
        backend.check(options)
        self._backend = backend
        self._options = options
        # So that the pool lives as long as somebody can give it calls.
        self._owner = owner
        #: What goes with calls besides their arguments, if that is anything.
        self._carriage = carriage.of(options, numbers)

    def _submit(
        self,
        fn: Callable[..., R],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        callback: Callable[[R], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
        name: str | None = None,
        *,
        fed: bool = False,
        kind: type[Task[Any]] = Task,
    ) -> Task[R]:
        call = Call(function(fn), tuple(args), dict(kwargs))
        if name is not None:  # what runs is a function of ours, with the caller's
            call.what = name
        task: Task[R] = kind(call.what, self._options, self, self._backend)
        if callback is not None or error_callback is not None:
            check_callbacks(callback, error_callback)
            task.call_back(callback, error_callback)
        self._backend.submit(task, call, fed)
        return task

    def _task(self, name: str) -> Task[Any]:
        return Task(name, self._options, self, self._backend)

    def _map(
        self,
        fn: Callable[..., R],
        iterable: Iterable[Any],
        chunksize: int | None,
        callback: Callable[[list[R]], object] | None,
        error_callback: Callable[[BaseException], object] | None,
        progress: Progress,
        *,
        star: bool,
    ) -> Task[list[R]]:
        if chunksize is not None:
            chunksize = whole_number("chunksize", chunksize, 1)
        function(fn)
        check_callbacks(callback, error_callback)
        self._backend.check_open()
        name = describe(fn)
        if self._carriage is not None:
            fn, iterable, star = self._carriage.each(fn, iterable, star=star)
        items = chunks.sliceable(iterable)
        size = chunksize or chunks.default_size(len(items), self._backend.workers)
        sliced = chunksize is None and size > 1
        parts: _Parts[R] = _Parts(self, fn, items, size, star=star, sliced=sliced)
        sizes = parts.sizes
        meter = progress_.meter(progress, len(items))
        longest = math.inf if self._options.timeout is None else SLICE_SECONDS
        gather: Gather[R] = Gather(self._backend, parts.submit, sizes, meter, longest, parts.flush)
        whole = gather.whole = Task(f"map of {name}", self._options, control=gather)
        whole.call_back(callback, error_callback)
        gather.begin()
        return whole

    def _imap(
        self,
        fn: Callable[[Any], R],
        iterable: Iterable[Any],
        chunksize: int,
        progress: Progress,
        *,
        ordered: bool,
    ) -> Results[R]:
        chunksize = whole_number("chunksize", chunksize, 1)
        function(fn)
        self._backend.check_open()
        iter(iterable)  # a TypeError is the caller's, and not the feeder thread's
        total = len(iterable) if isinstance(iterable, Sized) else None
        awaited = iterable if isinstance(iterable, Awaited) else None
        name = describe(fn)
        if self._carriage is not None:
            fn, iterable, _ = self._carriage.each(fn, iterable, star=False)

        here = self._backend if isinstance(self._backend, Inline) else None
        run_each = run_each_here if here else chunks.run_each
        submit_chunk, submit_small = self._backend.submit_chunk, self._backend.submit_small
        # Of a pool without workers it only raises what cannot travel, as everywhere.
        each = packing.Each(fn, self._backend.reader) if submit_chunk or here else None

        def submit(chunk: list[Any]) -> Task[list[tuple[bool, Any]]]:
            if submit_chunk is None or each is None:
                return self._submit(run_each, (fn, chunk), {}, name=name, fed=True)
            task: Task[Any] = Task(name, self._options, self, self._backend)
            submit_chunk(task, each, chunk)
            return task

        def submit_all(pulled: list[list[Any]]) -> list[Task[Any]]:
            if submit_small is None or each is None or (packed := each.pack_small(pulled)) is None:
                return []
            tasks = [self._task(name) for _ in pulled]
            submit_small(tasks, packed, each.common)
            return tasks

        meter = progress_.meter(progress, total)
        if here is not None:
            return LazyResults(submit, here, iterable, chunksize, meter, awaited)
        ahead = Lookahead(AHEAD * self._backend.workers, self._backend.round_trip)
        feeds, later = self._backend.feeds, self._backend.later
        results: Results[R] = Results(
            submit, submit_all, feeds, iterable, chunksize, later, ahead, meter, ordered=ordered
        )
        if awaited is not None:
            results._check_reader = awaited.check_reader
        return results


def pulled(iterable: Iterable[T] | AsyncIterable[T]) -> Iterable[T]:
    """Return what has the items of an input that may be asynchronous."""
    return Awaited(iterable) if isinstance(iterable, AsyncIterable) else iterable


def function(fn: Any) -> Any:
    if not callable(fn):
        raise TypeError(f"a pool calls functions, not {fn!r}")
    return fn


def check_callbacks(*callbacks: Any) -> None:
    for callback in callbacks:
        if callback is not None and not callable(callback):
            raise TypeError(f"a callback is a function, not {callback!r}")


class _Parts(Generic[R]):
    """Submits the parts of a map: chunks, or slices of chunks that are pickled once."""

    def __init__(
        self,
        caller: Caller,
        fn: Callable[..., R],
        items: Sequence[Any],
        size: int,
        *,
        star: bool,
        sliced: bool,
    ) -> None:
        self._caller = caller
        self._fn = fn
        self._name = describe(fn)
        self._items = items
        self._star = star
        #: Submits a slice; None if chunks stay whole.
        self._submit_part = caller._backend.submit_part if sliced else None
        self._volley = Volley()
        #: How many items each chunk has.
        self.sizes = chunks.sizes(len(items), size)
        #: The first one, if it is packed: for its size.
        self._packed: list[Chunk | None] = []
        if self._submit_part is not None and size >= chunks.MANY:
            first = self._pack(self._piece(0))
            self._packed = [first]
            if first is not None and len(first.stream) <= chunks.SMALL:
                self.sizes = chunks.joined(self.sizes)
        self._firsts = list(itertools.accumulate(self.sizes, initial=0))

    def _piece(self, chunk: int) -> Sequence[Any]:
        """Return the items of a chunk."""
        first, size = self._firsts[chunk] if chunk else 0, self.sizes[chunk]
        piece = self._items[first : first + size]
        if len(piece) < size:
            raise RuntimeError(
                "the list that a map was given became shorter before it was sent: have nobody "
                "change it meanwhile, or give the map a copy"
            )
        return piece

    def _pack(self, piece: Sequence[Any]) -> Chunk | None:
        call = Call(self._fn, (piece, self._star), {})
        return packing.pack_chunk(call, self._caller._backend.reader)

    def flush(self) -> None:
        """All was submitted: have it run, if some of it is held back."""
        self._items = ()  # which may be much, and to let go of it when all is done takes time then
        self._volley.end()

    def submit(self, part: Slice) -> Task[tuple[list[R], float]]:
        """Submit a slice of a chunk; or all of it, if it stays whole or cannot be sent again."""
        if part.packed is None:
            piece = self._piece(part.chunk)
            if self._submit_part is not None:
                part.packed = self._packed.pop() if self._packed else self._pack(piece)
            if part.packed is None:
                self._volley.end()  # nothing waits for what does not go with it, and is mostly large
                args = self._fn, piece, self._star
                return self._caller._submit(chunks.run_all, args, {}, name=self._name)
        assert self._submit_part is not None
        task = self._caller._task(self._name)
        # With a timeout after each item, or long ones behind many short ones would exceed it.
        most = MANY if self._caller._options.timeout is None else 1
        what = packing.Part(part.packed, (part.start, part.stop, part.seconds, most))
        # When there is some left of a chunk the pool may have been closed meanwhile.
        self._submit_part(task, what, None if part.start else self._volley)
        return task
