"""What became of a call: results and exceptions, on their way to another process."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
import traceback
from typing import Any

import numpy as np
import pytest

from mpkit import _outcome
from mpkit._describe import describe
from mpkit._errors import NotPicklable, RemoteError, RemoteTraceback, TaskExit


def arrived(error: BaseException) -> BaseException:
    """Raise ``error``, and return what is raised in the process that waits."""
    try:
        raise_it(error)
    except BaseException as raised:
        with contextlib.closing(_outcome.pack_error("task f", raised, skip_frames=1)) as parcel:
            data, fds = parcel.seal()
            return _outcome.unpack_error(data, [os.dup(fd) for fd in fds])
    raise AssertionError


def raise_it(error: BaseException) -> None:
    raise error


class TwoFacts(Exception):
    """Pickle replays the constructor with one argument."""

    def __init__(self, name: str, number: int) -> None:
        super().__init__(f"{name} {number}")
        self.name = name
        self.number = number


class TwoFactsKept(Exception):
    def __init__(self, name: str, number: int) -> None:
        super().__init__(name, number)
        self.name = name
        self.number = number


class Secretive(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


class Changeling(Exception):
    def __reduce__(self) -> Any:
        return KeyError, ("another",)


class Holder(Exception):
    """Holds what cannot travel."""

    def __init__(self) -> None:
        super().__init__("held")
        self.lock = threading.Lock()


class Ending(BaseException):
    pass


class EndingGroup(BaseExceptionGroup[BaseException]):
    pass


class Frozen(Exception):
    """As a frozen dataclass does, it refuses to have ``__cause__`` set, too."""

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(name)


class Forgetful(Exception):
    """Its pickle has no room for notes."""

    def __reduce__(self) -> Any:
        return Forgetful, ()


class Mute(Exception):
    """No traceback of it can be printed: whoever asks for anything is told off."""

    @property
    def __notes__(self) -> Any:
        raise SystemExit(4)

    def __str__(self) -> str:
        raise SystemExit(4)

    __repr__ = __str__


class Explosive(Exception):
    """Its rebuilding ends the process, if nobody is careful."""

    def __reduce__(self) -> Any:
        return raise_it, (SystemExit(3),)


class Fickle(Exception):
    """Can be rebuilt where it was raised, and nowhere else."""

    def __init__(self, pid: int) -> None:
        super().__init__(pid)
        if pid != os.getpid():
            raise OSError("not at home")


class Bare(Exception):
    @property
    def __dict__(self) -> Any:  # type: ignore[override]
        raise RuntimeError("no attributes")


class Nameless(type):
    @property
    def __module__(cls) -> str:  # type: ignore[override]
        raise RuntimeError("no module")

    @property
    def __name__(cls) -> str:
        raise RuntimeError("no name")


class Stateless(Exception, metaclass=Nameless):
    pass


class Wordless(Exception):
    """Not even what its ``__str__`` raises can be named."""

    def __str__(self) -> str:
        raise Stateless


def test_an_exception_arrives_with_its_traceback_as_the_cause() -> None:
    error = arrived(ValueError("wrong", 7))
    assert type(error) is ValueError
    assert error.args == ("wrong", 7)
    assert isinstance(error.__cause__, RemoteTraceback)
    assert "in raise_it" in error.__cause__.text
    assert "in arrived" not in error.__cause__.text  # the frame that was skipped
    assert str(error.__cause__).startswith('\n"""\nTraceback')


@pytest.mark.parametrize(
    "error",
    [
        TwoFactsKept("a", 1),
        OSError(2, "No such file", "name"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"),
        KeyError("key"),
        StopIteration(3),
        np.linalg.LinAlgError("singular"),
        ValueError(np.arange(50_000)),
    ],
    ids=lambda error: type(error).__name__,
)
def test_it_keeps_its_facts(error: Exception) -> None:
    there = arrived(error)
    assert type(there) is type(error)
    assert repr(there) == repr(error)
    assert {**vars(there)} == {**vars(error)}


def test_notes_arrive() -> None:
    error = ValueError("wrong")
    error.add_note("while parsing line 7")
    there = arrived(error)
    assert there.__notes__ == ["while parsing line 7"]
    assert isinstance(there.__cause__, RemoteTraceback)
    assert "while parsing line 7" in there.__cause__.text


@pytest.mark.parametrize("notes", [5, [1, "a note", None], None])
def test_odd_notes_do_not_lose_the_exception(notes: Any) -> None:
    error = ValueError("wrong")
    error.__notes__ = notes
    there = arrived(error)
    assert repr(there) == "ValueError('wrong')"
    assert isinstance(there.__cause__, RemoteTraceback)
    assert "in raise_it" in there.__cause__.text


def test_one_whose_attributes_cannot_be_had_arrives() -> None:
    there = arrived(Bare("wrong"))
    assert type(there) is Bare
    assert there.args == ("wrong",)


def test_one_whose_class_has_no_name_has_a_stand_in() -> None:
    there = arrived(Stateless("wrong"))
    assert isinstance(there, RemoteError)
    assert there.type_name == "Stateless"
    assert "no module" in there.why
    assert "in raise_it" in there.traceback


def test_one_whose_words_fail_beyond_words_arrives() -> None:
    assert type(arrived(Wordless())) is Wordless


def test_where_it_was_raised_is_told_without_a_module_to_print_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A new process imports that now, where there may be no descriptor to read a file by."""
    monkeypatch.setitem(sys.modules, "traceback", None)
    there = arrived(ValueError("wrong"))
    assert type(there) is ValueError
    assert "in raise_it\nValueError: wrong" in str(there.__cause__)


def test_causes_arrive_and_the_traceback_is_the_last_of_them() -> None:
    there = arrived(raised_from(ValueError("wrong"), raised_from(KeyError("reason"), OSError(2))))
    assert chain_of(there) == ["ValueError('wrong')", "KeyError('reason')", "OSError(2)", TEXT]
    assert isinstance(there.__cause__, KeyError)
    assert there.__context__ is there.__cause__
    printed = "".join(traceback.format_exception(there))
    assert printed.count("in raised_from") == 4  # the lines of the other process, once
    assert printed.index('"""') < printed.index("direct cause")


def test_contexts_arrive() -> None:
    there = arrived(raised_during(ValueError("wrong"), KeyError("reason")))
    assert chain_of(there) == ["ValueError('wrong')", TEXT]
    assert repr(there.__context__) == "KeyError('reason')"
    assert not there.__suppress_context__
    assert "During handling" in str(there.__cause__)


def test_a_suppressed_context_arrives_suppressed() -> None:
    error = raised_during(ValueError("wrong"), KeyError("reason"))
    error.__suppress_context__ = True
    there = arrived(error)
    assert repr(there.__context__) == "KeyError('reason')"
    assert there.__suppress_context__
    assert "reason" not in "".join(traceback.format_exception(there))


def test_a_cause_that_cannot_travel_is_replaced_in_its_place() -> None:
    there = arrived(raised_from(ValueError("wrong"), raised_from(Holder(), KeyError("reason"))))
    stand_in = there.__cause__
    assert isinstance(stand_in, RemoteError)
    assert stand_in.type_name.endswith("Holder")
    assert "in raised_from" in stand_in.traceback
    assert repr(stand_in.__cause__) == "KeyError('reason')"


def test_causes_that_are_never_raised_here_arrive_as_they_are() -> None:
    there = arrived(raised_from(ValueError("wrong"), KeyboardInterrupt()))
    assert isinstance(there.__cause__, KeyboardInterrupt)


def test_a_cause_that_is_an_attribute_too_is_still_one_object() -> None:
    reason = KeyError("reason")
    error = raised_from(ValueError("wrong"), reason)
    error.reason = reason  # type: ignore[attr-defined]
    there: Any = arrived(error)
    assert there.reason is there.__cause__


@pytest.mark.parametrize("length", [1, 2, 5])
def test_a_circle_of_causes_arrives_open(length: int) -> None:
    errors = [ValueError(number) for number in range(length)]
    for error, cause in zip(errors, [*errors[1:], errors[0]], strict=True):
        error.__cause__ = error.__context__ = cause
    there = arrived(errors[0])
    assert chain_of(there) == [*map(repr, errors), TEXT]


def test_an_endless_chain_arrives_in_part() -> None:
    first = ValueError(0)
    last = first
    for number in range(1, 5000):
        last.__cause__ = ValueError(number)
        last = last.__cause__
    chain = chain_of(arrived(first))
    assert 500 < len(chain) < 5000
    assert chain[:2] == ["ValueError(0)", "ValueError(1)"]
    assert chain[-1] == TEXT


def test_what_came_from_another_process_shows_its_traceback_once() -> None:
    """As where a job waits for a job."""
    there = arrived(arrived(raised_from(ValueError("wrong"), KeyError("reason"))))
    assert chain_of(there) == ["ValueError('wrong')", "KeyError('reason')", TEXT]
    assert "".join(traceback.format_exception(there)).count("in raised_from") == 2


def raised_from(error: BaseException, cause: BaseException) -> BaseException:
    """Return ``error`` after ``raise error from cause``."""
    try:
        try:
            raise cause
        except BaseException as caught:
            raise error from caught
    except BaseException as caught:
        return caught


def raised_during(error: BaseException, handled: BaseException) -> BaseException:
    try:
        try:
            raise handled
        except BaseException:
            raise error  # noqa: B904
    except BaseException as caught:
        return caught


TEXT = "the remote traceback"


def chain_of(error: BaseException | None) -> list[str]:
    """Return the reprs of an exception and its causes."""
    chain: list[str] = []
    while error is not None:
        chain.append(TEXT if isinstance(error, RemoteTraceback) else repr(error))
        error = error.__cause__
    return chain


def test_groups_arrive_whole() -> None:
    there = arrived(ExceptionGroup("both", [ValueError(1), ExceptionGroup("in", [KeyError(2)])]))
    assert isinstance(there, ExceptionGroup)
    assert (
        repr(there)
        == "ExceptionGroup('both', [ValueError(1), ExceptionGroup('in', [KeyError(2)])])"
    )


class Numbered(ExceptionGroup[Exception]):
    """A group of one's own, without a ``derive``, which keeps an attribute."""

    number = 0


def test_the_members_of_groups_keep_notes_and_causes() -> None:
    member = raised_from(ValueError(1), KeyError("reason"))
    member.add_note("of a member")
    group = Numbered("both", [member, ExceptionGroup("in", [OSError(2)])])  # type: ignore[list-item]
    group.number = 7
    group.add_note("of the group")
    there = arrived(group)
    assert isinstance(there, Numbered)
    assert there.number == 7
    assert there.__notes__ == ["of the group"]
    assert there.exceptions[0].__notes__ == ["of a member"]
    assert chain_of(there.exceptions[0]) == ["ValueError(1)", "KeyError('reason')"]
    assert chain_of(there)[1:] == [TEXT]


def test_a_member_that_cannot_travel_is_replaced_in_its_place() -> None:
    held = Holder()
    held.add_note("a note")
    there = arrived(ExceptionGroup("both", [ExceptionGroup("in", [held]), ValueError(1)]))
    assert isinstance(there, ExceptionGroup)
    inner, other = there.exceptions
    assert isinstance(inner, ExceptionGroup)
    assert isinstance(inner.exceptions[0], RemoteError)
    assert inner.exceptions[0].__notes__ == ["a note"]
    assert "lock" in inner.exceptions[0].why
    assert repr(other) == "ValueError(1)"


def test_a_group_dissolves_of_which_a_member_is_not_raised_here() -> None:
    group = BaseExceptionGroup("b", [KeyboardInterrupt(), SystemExit(3), ValueError(1)])
    there = arrived(group)
    assert type(there) is ExceptionGroup
    assert [type(member) for member in there.exceptions] == [RemoteError, TaskExit, ValueError]


def test_a_member_caused_by_its_own_group_arrives() -> None:
    """As by ``raise group.exceptions[0] from group``."""
    member = ValueError(1)
    group = ExceptionGroup("both", [member, Holder()])
    there = arrived(raised_from(member, group))
    assert isinstance(there, ValueError)
    assert isinstance(there.__cause__, ExceptionGroup)
    assert there.__cause__.exceptions[0] is there
    assert isinstance(there.__cause__.exceptions[1], RemoteError)


def test_many_members_and_deep_groups_arrive() -> None:
    wide = arrived(ExceptionGroup("wide", [ValueError(number) for number in range(3000)]))
    assert isinstance(wide, ExceptionGroup)
    assert [member.args for member in wide.exceptions] == [(number,) for number in range(3000)]
    deep: Exception = ValueError(0)
    for _ in range(300):
        deep = ExceptionGroup("deep", [deep])
    there = arrived(deep)
    for _ in range(300):
        assert isinstance(there, ExceptionGroup)
        (there,) = there.exceptions
    assert repr(there) == "ValueError(0)"


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (TwoFacts("a", 1), "missing 1 required positional argument: 'number'"),
        (Holder(), "the exception cannot be pickled"),
        (Changeling("x"), "it becomes a KeyError when it is unpickled"),
        (Explosive("x"), "could not travel"),
        (Ending("x"), "it is not an Exception"),
        (KeyboardInterrupt(), "it is not an Exception"),
        (GeneratorExit(), "it is not an Exception"),
        (EndingGroup("b", [Ending("x")]), "it is not an Exception"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_one_that_cannot_travel_is_replaced(error: BaseException, why: str) -> None:
    there = arrived(error)
    assert type(there) is RemoteError
    assert why in there.why
    assert there.type_name.endswith(type(error).__name__)
    assert there.message == str(error)
    assert there.repr == repr(error)
    assert "in raise_it" in there.traceback
    assert isinstance(there.__cause__, RemoteTraceback)


def test_one_that_is_frozen_arrives() -> None:
    error = Frozen()
    BaseException.__setattr__(error, "__cause__", KeyError("reason"))
    there = arrived(error)
    assert isinstance(there, Frozen)
    assert chain_of(there)[1:] == ["KeyError('reason')", TEXT]


def test_notes_arrive_though_its_pickle_forgets_them() -> None:
    error = Forgetful()
    error.add_note("a note")
    assert arrived(error).__notes__ == ["a note"]


def test_one_of_which_nothing_can_be_said_arrives() -> None:
    there = arrived(Mute())
    assert type(there) is Mute
    assert isinstance(there.__cause__, RemoteTraceback)
    assert "in raise_it" in there.__cause__.text


def test_one_without_words_arrives() -> None:
    there = arrived(Secretive("x"))
    assert type(there) is Secretive
    assert isinstance(there.__cause__, RemoteTraceback)


def test_the_stand_in_of_one_without_words_has_some() -> None:
    class Local(Secretive):
        def __reduce__(self) -> Any:
            raise ValueError("never")

    there = arrived(Local())
    assert isinstance(there, RemoteError)
    assert there.message == "<its __str__ raised ValueError>"


def test_one_that_cannot_be_rebuilt_here_is_replaced_here(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        raise Fickle(os.getpid())
    except Fickle as raised:
        parts = _outcome.Raised.of("task f", raised)
    assert type(parts.error()) is Fickle
    monkeypatch.setattr(os, "getpid", lambda: -1)
    there = parts.error()
    assert isinstance(there, RemoteError)
    assert there.why == "the original could not be rebuilt: not at home"


@pytest.mark.parametrize("code", [None, 0, 3, "a message"])
def test_an_exit_arrives_as_an_ordinary_exception(code: object) -> None:
    there = arrived(SystemExit(code))
    assert isinstance(there, TaskExit)
    assert isinstance(there, Exception)
    assert there.code == code
    assert str(there) == f"task f called sys.exit({code!r})"


def travelled(value: object) -> Any:
    kind, parcel = _outcome.pack_result("task f", len, value)
    with contextlib.closing(parcel):
        data, packed = parcel.seal()
        fds = [os.dup(fd) for fd in packed]
    if kind == _outcome.FAILED:
        raise _outcome.unpack_error(data, fds)
    assert kind == _outcome.DONE
    return _outcome.unpack_result("task f", data, fds)


def test_a_result_arrives_equal() -> None:
    assert travelled({"a": [1, 2]}) == {"a": [1, 2]}
    assert np.array_equal(travelled(np.arange(100_000)), np.arange(100_000))


def test_a_returned_exception_is_a_value() -> None:
    """Row 27 of the table of faults."""
    assert repr(travelled(ValueError(1))) == "ValueError(1)"


def test_a_result_that_cannot_travel_is_a_failure_of_the_call() -> None:
    with pytest.raises(
        NotPicklable, match=r"the result of task f \(len\) cannot be pickled: .*lock"
    ):
        travelled(threading.Lock())


def test_it_says_what_cannot_be_pickled_and_in_what() -> None:
    with pytest.raises(NotPicklable) as caught:
        travelled({"deep": [1, {"in": threading.Lock()}], "long": "x" * 10_000})
    assert (
        "(inside it: ['deep'][1]['in'], which is <unlocked _thread.lock object" in caught.value.why
    )
    assert caught.value.repr.startswith("{'deep': [1, {'in': <unlocked")
    assert len(caught.value.repr) <= 500
    assert caught.value.repr in str(caught.value)
    assert "cannot pickle" in str(caught.value.__cause__)
    assert chain_of(caught.value)[-1] == TEXT


class Shy:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __repr__(self) -> str:
        raise self.error

    def __reduce__(self) -> Any:
        raise ValueError("never")


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3)])
def test_a_result_that_cannot_be_shown_is_named_all_the_same(error: BaseException) -> None:
    with pytest.raises(NotPicklable, match="ValueError: never") as caught:
        travelled(Shy(error))
    assert "Shy" in caught.value.repr


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(2)])
def test_what_pickling_the_result_raises_is_a_failure_of_the_call(error: BaseException) -> None:
    with pytest.raises((NotPicklable, RemoteError, TaskExit)) as caught:
        travelled(Raises(error))
    assert type(error).__name__ in str(caught.value) or isinstance(error, SystemExit)


class Raises:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error


class RaisesThere:
    def __reduce__(self) -> Any:
        return raise_it, (EOFError("mine"),)


def test_what_unpickling_the_result_raises_says_where() -> None:
    with pytest.raises(EOFError, match="mine") as caught:
        travelled(RaisesThere())
    assert "while the result of task f was unpickled" in caught.value.__notes__[0]


class Callable:
    def __call__(self) -> None: ...


def test_a_call_is_described_by_its_name() -> None:
    assert describe(len) == "len"
    assert describe(os.path.join).endswith("path.join")
    assert describe(functools.partial(functools.partial(len))) == "len"
    assert describe(raise_it) == f"{__name__}.raise_it"
    assert describe(Callable()).endswith("Callable")


@pytest.mark.parametrize(("module", "text"), [(None, "fn"), ("m", "m.fn"), (["m"], "['m'].fn")])
def test_a_function_of_an_odd_module_is_described(module: Any, text: str) -> None:
    def fn() -> None: ...

    fn.__module__, fn.__qualname__ = module, "fn"
    for _ in range(2):
        assert describe(fn) == text
