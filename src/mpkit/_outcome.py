"""What a call in another process came to, and how that travels back.

Used by `Job` and by the pool's workers. A result is packed as it is. An exception is
packed together with its traceback as text, and with all that hangs on it: the members
of a group, causes and contexts, each in a stream of its own. Each is rebuilt once
before it leaves, in the process that raised it: one that cannot be rebuilt is replaced
there by a `RemoteError` that says why, instead of breaking whoever reads it.
"""

from __future__ import annotations

import contextlib
import errno
import io
import pickle
import time
from typing import TYPE_CHECKING, Any, Final

from mpkit import _parcel, _pickling, _reader
from mpkit._describe import describe
from mpkit._errors import NotPicklable, RemoteError, RemoteTraceback, TaskExit
from mpkit._wait import Deadline

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType

    from mpkit._link import Link
    from mpkit._parcel import Parcel
    from mpkit._pickling import Name

#: The first byte of an outcome's packet.
DONE: Final = b"d"
FAILED: Final = b"f"
#: As `DONE`, where to unpickle it runs nobody's code.
ATOMS: Final = b"a"


def pack_result(what: str, fn: Callable[..., object], value: object) -> tuple[bytes, Parcel]:
    """Pack what ``fn`` returned; that it cannot be pickled is an outcome, too."""
    try:
        return DONE, _parcel.pack(value, "the result", reader=_reader.parent())
    except NotPicklable as error:
        named = NotPicklable(
            f"the result of {what} ({describe(fn)})", error.why, _pickling.shown(value)
        )
        named.__cause__ = error.__cause__
        return FAILED, pack_error(what, named)
    except BaseException as error:  # noqa: BLE001  pickling is user code
        return FAILED, pack_error(what, error)


def pack_error(what: str, error: BaseException, *, skip_frames: int = 0) -> Parcel:
    """Pack an exception and its traceback."""
    return _parcel.pack(raised(what, error, skip_frames=skip_frames), f"the failure of {what}")


def raised(what: str, error: BaseException, *, skip_frames: int = 0) -> Raised:
    """Return an exception in parts that always travel, whatever is odd about it."""
    try:
        return Raised.of(what, error, skip_frames=skip_frames)
    except BaseException as failure:  # noqa: BLE001  more is odd about its class than is foreseen
        return Raised.in_brief(error, failure)


def send(link: Link, header: bytes, kind: bytes, parcel: Parcel, what: str, to: str) -> bytes:
    """Send an outcome; return its kind. What it carries belongs ``to`` somebody else then.

    That no descriptors or no memory are left for it is an outcome, too: one that takes
    neither to be told. Raises LinkDown if nobody waits for it.
    """
    try:
        packet, fds = parcel.seal(header + kind)
        if parcel.plain:  # as most are: by few functions, each of which is slow the first time
            link.send(packet, fds)
        else:
            _send_patiently(link, packet, fds)
    except OSError as error:
        error.add_note(f"(raised while the {_WORDS[kind]} of {what} was sent)")
        failure = pack_error(what, error)
    else:
        parcel.depart(f"moved to {to}")
        return kind
    finally:
        parcel.close()
    with contextlib.closing(failure):
        link.send(*failure.seal(header + FAILED))
    return FAILED


#: Seconds for descriptors that others have on their way to arrive. (Arbitrary: if their
#: receivers are at work it takes milliseconds, and if not it takes for ever.)
_PATIENCE: Final = 2.0


def _send_patiently(link: Link, data: bytes, fds: Sequence[int]) -> None:
    """Send a packet, again for a while if too many descriptors are on their way."""
    deadline, pause = Deadline(_PATIENCE), 0.001
    while True:
        try:
            link.send(data, fds)
            return
        except OSError as error:
            if error.errno != errno.ETOOMANYREFS or deadline.passed():
                raise
        time.sleep(pause)  # the kernel counts for each user, and tells nobody when it is less
        pause *= 2


_WORDS: Final = {DONE: "result", FAILED: "exception"}


def unpack_error(data: bytes, fds: list[int], start: int = 0) -> BaseException:
    """Return the exception of a failed call; a `RemoteTraceback` is its last cause."""
    arrived: Raised = _parcel.unpack(data, fds, start)
    return arrived.error()


def unpack_result(what: Name, data: bytes, fds: list[int], start: int = 0) -> Any:
    """Return what the call returned; what unpickling raises says so in a note."""
    try:
        return _parcel.unpack(data, fds, start)
    except BaseException as error:
        note_unpacking(error, _pickling.text(what))
        raise


def note_unpacking(error: BaseException, what: str) -> None:
    """Have an error tell that it was raised by what unpickled a result."""
    error.add_note(f"(raised here while the result of {what} was unpickled)")


class Raised:
    """An exception and all that hangs on it, in parts that always travel."""

    def __init__(self, text: str, parts: list[_Part], root: int) -> None:
        self.text = text
        self.parts = parts
        #: Which of the parts was raised.
        self.root = root

    @staticmethod
    def of(what: str, error: BaseException, *, skip_frames: int = 0) -> Raised:
        """Take ``error`` apart, in the process that raised it."""
        trace = error.__traceback__
        for _ in range(skip_frames):  # ours, which say nothing about the failure
            trace = trace.tb_next if trace else None
        family = _Family(error)
        parts = _taken_apart(what, family)
        return Raised(_formatted(error, trace), parts, family.numbers[id(error)])

    @staticmethod
    def in_brief(error: BaseException, failure: BaseException) -> Raised:
        """Tell of ``error`` what can be told without a look at what its class has."""
        name = _name_of(error)
        why = f"it could not be taken apart: {_message(failure)}"
        part = _Part(name, "", f"<a {name}>")
        part.why = why
        return Raised(f"{_frames(_traceback.__get__(error))}{name}\n", [part], 0)

    def error(self) -> BaseException:
        """Return the exception with its members, causes and contexts.

        Its chain of causes ends with a `RemoteTraceback`, and nowhere in a circle.
        """
        errors: list[BaseException] = []
        for part in self.parts:
            try:
                errors.append(part.rebuilt(errors, self.text))
            except BaseException as failure:  # noqa: BLE001  its own code ran, here this time
                why = f"the original could not be rebuilt: {_message(failure)}"
                errors.append(part.stand_in(self.text, why))
        for part, error in zip(self.parts, errors, strict=True):
            part.link(error, errors)
        last = raised = errors[self.root]
        chain = {id(last)}
        while (cause := _cause.__get__(last)) is not None and id(cause) not in chain:
            chain.add(id(cause))
            last = cause
        suppress = _suppress_context.__get__(last)
        _cause.__set__(last, RemoteTraceback(self.text))
        _suppress_context.__set__(last, suppress)  # to have a cause does so, too
        return raised


class _Part:
    """One exception. Empty ``stream``: it cannot travel. Links are numbers of parts, or -1."""

    notes: Sequence[str] = ()
    stream: bytes = b""
    buffers: Sequence[bytearray] = ()
    why: str = ""
    #: Of those that cannot travel; the traceback of all has room for the first members only.
    text: str = ""
    cause: int = -1
    context: int = -1
    suppress_context: bool = False

    def __init__(self, type_name: str, message: str, shown: str) -> None:
        self.type_name = type_name
        self.message = message
        self.repr = shown

    def rebuilt(self, before: Sequence[BaseException], text: str) -> BaseException:
        """Return the exception, unlinked, or what stands for it. ``before`` has its members."""
        if not self.stream:
            return self.stand_in(self.text or text, self.why)
        error: BaseException = _Unpickler(self, before).load()
        if self.notes:  # a __reduce__ of the user's may forget them
            vars(error).setdefault("__notes__", self.notes)
        return error

    def stand_in(self, text: str, why: str) -> RemoteError:
        error = RemoteError(self.type_name, self.message, text, why, self.repr)
        if self.notes:
            vars(error)["__notes__"] = self.notes
        return error

    def link(self, error: BaseException, errors: Sequence[BaseException]) -> None:
        _cause.__set__(error, errors[self.cause] if self.cause >= 0 else None)
        _context.__set__(error, errors[self.context] if self.context >= 0 else None)
        _suppress_context.__set__(error, self.suppress_context)


class _Unpickler(pickle.Unpickler):
    def __init__(self, part: _Part, before: Sequence[BaseException]) -> None:
        super().__init__(io.BytesIO(part.stream), buffers=part.buffers)
        self._before = before

    def persistent_load(self, pid: Any) -> BaseException:
        number: int = pid
        return self._before[number]


# As BaseException has them: a class may have properties of these names, or (a frozen
# dataclass) refuse to have them set.
_cause: Any = vars(BaseException)["__cause__"]
_context: Any = vars(BaseException)["__context__"]
_suppress_context: Any = vars(BaseException)["__suppress_context__"]
_traceback: Any = vars(BaseException)["__traceback__"]
_members: Any = vars(BaseExceptionGroup)["exceptions"]

#: At most so many exceptions that hang together travel with what hangs on them; the chain
#: of a loop that retries may be endless. (Arbitrary; who reads more?)
_MOST: Final = 1000


class _Family:
    """An exception and all that hangs on it: members of groups, causes and contexts."""

    def __init__(self, error: BaseException) -> None:
        self.first = error
        #: Those that may be raised where the call is waited for: the first, and its members.
        self.raised = {id(error)}
        found = {id(error): error}
        reached = [error]
        for one in reached:
            members = list(_members_of(one))
            if id(one) in self.raised:
                self.raised.update(map(id, members))
            for other in (*members, *_chained_to(one)):
                if id(other) not in found and len(found) < _MOST:
                    found[id(other)] = other
                    reached.append(other)
        #: Members come before their groups: those are rebuilt with them. Causes come, as far
        #: as that goes, before what they caused: it may have them as attributes.
        self.ordered: list[BaseException] = []
        #: The place of each, by its id, in that order.
        self.numbers: dict[int, int] = {}
        while reached:
            one = reached[-1]
            left = [m for m in _members_of(one) if id(m) in found and id(m) not in self.numbers]
            reached += left
            if not left:
                reached.pop()
                if id(one) not in self.numbers:
                    self.numbers[id(one)] = len(self.ordered)
                    self.ordered.append(one)

    def number(self, error: BaseException | None) -> int:
        return self.numbers.get(id(error), -1)


def _members_of(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        yield from _members.__get__(error)


def _chained_to(error: BaseException) -> Iterator[BaseException]:
    for link in (_cause, _context):
        other = link.__get__(error)
        # The text of another process' traceback is in the text of this one.
        if other is not None and not isinstance(other, RemoteTraceback):
            yield other


def _taken_apart(what: str, family: _Family) -> list[_Part]:
    parts: list[_Part] = []
    rebuilt: list[BaseException] = []

    def elsewhere(thing: Any) -> int | None:
        number = family.number(thing)
        return number if 0 <= number < len(parts) else None

    for error in family.ordered:
        part = _Part(_qualified_name(error), _message(error), _pickling.shown(error))
        part.notes = _notes(error)
        part.cause = family.number(_cause.__get__(error))
        part.context = family.number(_context.__get__(error))
        part.suppress_context = _suppress_context.__get__(error)
        try:
            sent = TaskExit(what, error.code) if isinstance(error, SystemExit) else error
            stream, buffers = _pickling.dumps(
                sent, "the exception", elsewhere=elsewhere, reader=_reader.parent()
            )
            part.buffers = [bytearray(buffer.raw()) for buffer in buffers]
            part.stream = stream
            there = part.rebuilt(rebuilt, "")
            _check(sent, there, id(error) in family.raised)
        except BaseException as failure:  # noqa: BLE001  the exception's own code ran
            part.stream, part.buffers = b"", ()
            part.why = f"the original could not travel: {_message(failure)}"
            if error is not family.first:
                part.text = _formatted(error, error.__traceback__, False)
            there = part.stand_in(part.text, part.why)
        parts.append(part)
        rebuilt.append(there)
    return parts


def _check(sent: BaseException, there: BaseException, raised: bool) -> None:
    """Raise TypeError if ``there`` is not what may be raised in place of ``sent``."""
    # Without the SystemExit or the KeyboardInterrupt, which were replaced, this is what
    # becomes of it.
    dissolved = type(sent) is BaseExceptionGroup and type(there) is ExceptionGroup
    if type(there) is not type(sent) and not dissolved:
        raise TypeError(f"it becomes a {type(there).__name__} when it is unpickled")
    if raised and not isinstance(there, Exception):
        # A KeyboardInterrupt or a GeneratorExit of the other process is not one here.
        raise TypeError("it is not an Exception, and is not raised in other processes")


def _notes(error: BaseException) -> list[str]:
    try:
        notes = vars(error).get("__notes__", ())
        return [str.__str__(note) for note in notes if isinstance(note, str)]
    except BaseException:  # noqa: BLE001  no list, or the class has a __dict__ of its own
        return []


def _formatted(error: BaseException, trace: TracebackType | None, chain: bool = True) -> str:
    try:
        import traceback  # noqa: PLC0415  takes a new process 3 ms, and few need it

        return "".join(traceback.format_exception(type(error), error, trace, chain=chain))
    except BaseException as failure:  # noqa: BLE001  the exception's own code ran
        said = f"{_qualified_name(error)}: {_message(error)} ({_message(failure)})"
        return f"{_frames(trace)}{said}\n"


def _frames(trace: TracebackType | None) -> str:
    """Return the lines of a traceback, without those of the source if they cannot be had.

    To read them takes a descriptor, and perhaps an import; and it may be for want of one that
    something has failed.
    """
    try:
        import traceback  # noqa: PLC0415

        return "".join(traceback.format_tb(trace))
    except Exception:  # noqa: BLE001  whatever keeps us from reading
        lines: list[str] = []
        while trace is not None:
            code = trace.tb_frame.f_code
            lines.append(
                f'  File "{code.co_filename}", line {trace.tb_lineno}, in {code.co_name}\n'
            )
            trace = trace.tb_next
        return "".join(lines)


def _qualified_name(error: BaseException) -> str:
    kind = type(error)
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    return module + kind.__qualname__


def _name_of(error: BaseException) -> str:
    """Return the name of its class, as type has it: a metaclass may have a property."""
    name: str = vars(type)["__name__"].__get__(type(error))
    return name


def _message(error: BaseException) -> str:
    try:
        return str.__str__(str(error))
    except BaseException as failure:  # noqa: BLE001  user code
        return f"<its __str__ raised {_name_of(failure)}>"
