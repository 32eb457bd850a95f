"""What workers log and warn of, in the program that has the pool."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import threading
import warnings
from typing import TYPE_CHECKING, Any

import pytest

import mpkit
from tests import poolwork
from tests.support import PATIENCE, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.context import BaseContext

log = logging.getLogger("tests.work")


class Kept(logging.Handler):
    """Keeps the records that it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    @property
    def texts(self) -> list[str]:
        return [record.getMessage() for record in self.records]


@contextlib.contextmanager
def attached(handler: logging.Handler, level: int = logging.INFO) -> Iterator[None]:
    """Have the logger of these tests, and no other one, use this handler, in this process."""
    before = log.level
    log.addHandler(handler)
    log.setLevel(level)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before)
        log.propagate = True


@pytest.fixture
def kept() -> Iterator[Kept]:
    handler = Kept()
    with attached(handler):
        yield handler


# what workers do


def say(text: str, level: int = logging.INFO, times: int = 1) -> int:
    for _ in range(times):
        log.log(level, text)
    return os.getpid()


def count(task: int, records: int, ballast: int = 0) -> None:
    for number in range(records):
        log.info("%d %d %s", task, number, "x" * ballast)


def say_what_cannot_travel() -> None:
    try:
        raise poolwork.Unpicklable("why")
    except poolwork.Unpicklable:
        log.exception(
            "%s and %d", threading.Lock(), 3, extra={"lock": threading.Lock(), "page": [3]}
        )


def say_and_die(text: str) -> None:
    log.info(text)
    os.kill(os.getpid(), signal.SIGKILL)


def say_in_a_child(text: str) -> None:
    child = multiprocessing.get_context("fork").Process(target=say, args=(text * 3000,))
    child.start()
    child.join()


def say_in_a_pool(text: str) -> str:
    with mpkit.TaskPool(1, log=True) as pool:
        task = pool.submit(say, text)
    return task.name


def warn(text: str, category: type[Warning]) -> None:
    warnings.warn(text, category, stacklevel=1)


class OddWarning(UserWarning):
    """One that is not made of a text alone."""

    def __init__(self, text: str, more: int = 1) -> None:
        super().__init__(f"{text} {more}")


def warn_oddly() -> None:
    class Local(DeprecationWarning):
        pass

    warnings.warn(Local("of here"), stacklevel=1)
    warnings.warn(OddWarning("odd", 2), stacklevel=1)


def pipes() -> dict[int, str]:
    """Return the pipes that this process has, by descriptor."""
    found: dict[int, str] = {}
    for fd in range(3, 1000):
        with contextlib.suppress(OSError):
            pipe = os.readlink(f"/proc/self/fd/{fd}")
            if pipe.startswith("pipe:"):
                found[fd] = pipe
    return found


def write_into_pipes(spared: set[str]) -> None:
    for fd in (fd for fd, pipe in pipes().items() if pipe not in spared):
        with contextlib.suppress(OSError):
            os.set_blocking(fd, False)
            os.write(fd, b"\xff" * 4000)


# records


@pytest.mark.usefixtures("start_method")
def test_records_come_with_the_names_of_their_worker_and_task(kept: Kept) -> None:
    with mpkit.TaskPool(1, say, ("begun",), log=True) as pool:
        task = pool.options(label="page 3").submit(say, "hello")
        pid = task.result(PATIENCE)
    begun, hello = kept.records
    assert (begun.getMessage(), hello.getMessage()) == ("begun", "hello")
    assert (hello.processName, hello.process) == ("mpkit worker 1", pid)
    assert (hello.name, hello.levelname, hello.funcName) == ("tests.work", "INFO", "say")
    assert vars(hello)["task"] == task.name
    assert vars(hello)["label"] == "page 3"
    assert (vars(begun)["task"], vars(begun)["label"]) == ("", "")


@pytest.mark.usefixtures("start_method")
def test_a_pool_leaves_logging_alone_unless_it_is_asked(kept: Kept) -> None:
    with mpkit.TaskPool(1) as pool:
        pool.apply(say, ("hello",))
    assert kept.records == []


@pytest.mark.usefixtures("start_method")
def test_workers_are_as_quiet_as_their_parent() -> None:
    handler = Kept()
    with attached(handler, logging.ERROR), mpkit.TaskPool(1, log="warning") as pool:
        pool.starmap(say, [("no", logging.WARNING), ("yes", logging.ERROR)])
    with attached(handler, logging.DEBUG), mpkit.TaskPool(1, log="WARNING") as pool:
        pool.starmap(say, [("no", logging.INFO), ("too", logging.WARNING)])
    with attached(handler, logging.DEBUG), mpkit.TaskPool(1, log=True) as pool:
        pool.apply(say, ("now", logging.DEBUG))
        until(lambda: "now" in handler.texts)
        log.setLevel(logging.ERROR)  # which the worker does not hear of
        pool.apply(say, ("no", logging.WARNING))
    assert handler.texts == ["yes", "too", "now"]


def test_filters_of_the_parent_see_each_record_once(context: BaseContext, kept: Kept) -> None:
    seen: list[str] = []

    def only_even(record: logging.LogRecord) -> bool:
        seen.append(record.getMessage())
        return int(record.getMessage()) % 2 == 0

    log.addFilter(only_even)
    try:
        with mpkit.TaskPool(1, context=context, log=True) as pool:
            pool.map(say, ["1", "2", "3", "4"])
    finally:
        log.removeFilter(only_even)
    assert (seen, kept.texts) == (["1", "2", "3", "4"], ["2", "4"])


@pytest.mark.usefixtures("start_method")
def test_any_record_can_travel(kept: Kept) -> None:
    with mpkit.TaskPool(1, log=True) as pool:
        pool.apply(say_what_cannot_travel)
        pool.apply(say, ("x" * 1_000_000,))
    odd, long = kept.records
    assert "lock" in odd.getMessage()
    assert odd.getMessage().endswith("and 3")
    assert odd.exc_info is None
    assert "Unpicklable: why" in (odd.exc_text or "")
    assert (vars(odd)["page"], type(vars(odd)["lock"])) == ([3], str)
    assert long.getMessage() == "x" * 1_000_000


@pytest.mark.usefixtures("start_method")
def test_what_a_worker_logged_before_it_was_killed_arrives(kept: Kept) -> None:
    with mpkit.TaskPool(1, log=True) as pool:
        for number in range(5):
            task = pool.options(name=f"n{number}").submit(say_and_die, f"bye {number}")
            assert isinstance(task.exception(PATIENCE), mpkit.WorkerDied)
    assert kept.texts == [f"bye {number}" for number in range(5)]
    assert [f"(n{n})" in vars(record)["task"] for n, record in enumerate(kept.records)] == [
        True
    ] * 5


@pytest.mark.usefixtures("start_method")
def test_workers_that_leave_lose_nothing(kept: Kept) -> None:
    with mpkit.TaskPool(2, tasks_per_worker=1, log=True) as pool:
        pool.starmap(count, [(task, 50) for task in range(6)], chunksize=1)
    assert len(kept.records) == 300


def test_no_record_of_very_many_is_lost_at_the_end(kept: Kept) -> None:
    with mpkit.TaskPool(2, log=True) as pool:
        pool.submit(count, 0, 100_000)
        pool.submit(count, 1, 100)
    ours = [text for text in kept.texts if text.startswith("0")]
    assert len(kept.records) == 100_100
    assert [int(text.split()[1]) for text in ours] == list(range(100_000))


def test_a_pool_that_is_terminated_tells_what_came_and_ends(kept: Kept) -> None:
    began = mpkit.Signal()
    pool = mpkit.TaskPool(2, log=True)
    flood = pool.submit(count, 0, 10**9, 1000)
    pool.submit(poolwork.sleep_for_ever, began)
    assert began.wait(PATIENCE)
    until(lambda: kept.records)
    pool.terminate()
    assert pool.join(PATIENCE)
    assert isinstance(flood.exception(0), mpkit.WorkerDied)
    numbers = [int(text.split()[1]) for text in kept.texts]
    assert numbers == list(range(len(numbers)))


@pytest.mark.usefixtures("start_method")
def test_who_is_forked_by_a_task_can_log(kept: Kept) -> None:
    with mpkit.TaskPool(1, log=True) as pool:
        pool.apply(say_in_a_child, ("x",))
    assert kept.texts == ["x" * 3000]


@pytest.mark.usefixtures("start_method")
def test_records_of_a_pool_in_a_worker_come_all_the_way(kept: Kept) -> None:
    with mpkit.TaskPool(1, log=True) as pool:
        name = pool.apply(say_in_a_pool, ("from within",))
    (record,) = kept.records
    assert (record.getMessage(), vars(record)["task"]) == ("from within", name)


@pytest.mark.usefixtures("start_method")
def test_who_asked_knows_which_task_logged(kept: Kept) -> None:
    """The supervisor hears of some tasks of `apply` only when it hears what they log."""
    with mpkit.TaskPool(1, log=True) as pool:
        asked = pool.options(name="asked", label="page 3")
        for number in range(100):
            asked.apply(say, (str(number),))
    assert kept.texts == [str(number) for number in range(100)]
    assert {vars(record)["label"] for record in kept.records} == {"page 3"}
    assert all("(asked, page 3)" in vars(record)["task"] for record in kept.records)


# handlers


@pytest.mark.usefixtures("start_method")
def test_a_handler_that_blocks_holds_up_nobody_but_the_end() -> None:
    go, began = threading.Event(), threading.Event()

    class Blocks(Kept):
        def emit(self, record: logging.LogRecord) -> None:
            began.set()
            go.wait(PATIENCE)
            super().emit(record)

    handler = Blocks()
    with attached(handler):
        pool = mpkit.TaskPool(1, log=True)
        pool.apply(say, ("first",))
        assert began.wait(PATIENCE)
        pool.submit(count, 0, 3000, 200).result(PATIENCE)  # more than a pipe has room for
        assert pool.apply(abs, (-1,)) == 1
        pool.close()
        assert not pool.join(0)
        go.set()
        assert pool.join(PATIENCE)
    assert len(handler.records) == 3001


@pytest.mark.usefixtures("start_method")
def test_a_handler_may_wait_for_a_task_that_logs() -> None:
    pools: list[mpkit.TaskPool] = []

    class Asks(Kept):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage() == "ask":
                pools[0].submit(count, 0, 3000, 200).result(PATIENCE)
            super().emit(record)

    handler = Asks()
    with attached(handler), mpkit.TaskPool(1, log=True) as pool:
        pools.append(pool)
        pool.apply(say, ("ask",))
        until(lambda: len(handler.records) == 3001)
    assert handler.texts[0] == "ask"


def test_a_handler_that_waits_for_its_own_end_is_told_so() -> None:
    told: list[str] = []

    class Closes(Kept):
        def emit(self, record: logging.LogRecord) -> None:
            pool.close()
            with pytest.raises(RuntimeError, match="handler of its log") as error:
                pool.join()
            told.append(str(error.value))

    with attached(Closes()), mpkit.TaskPool(1, log=True) as pool:
        pool.apply(say, ("hello",))
    assert len(told) == 1


def test_who_holds_a_handlers_lock_can_wait_for_results(start_method: str, kept: Kept) -> None:
    """A forked worker has none of the handlers, and so none of the locks that are held."""
    del start_method
    kept.acquire()
    try:
        pool = mpkit.TaskPool(1, log=True)
        assert pool.apply_async(say, ("hello",)).get(PATIENCE)
    finally:
        kept.release()
    pool.close()
    assert pool.join(PATIENCE)
    assert kept.texts == ["hello"]


@pytest.mark.parametrize("error", [LookupError("mine"), SystemExit(3), KeyboardInterrupt()])
def test_a_handler_that_raises_loses_its_own_record_only(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[BaseException] = []
    monkeypatch.setattr(sys, "excepthook", lambda _, error, __: reported.append(error))

    class Raises(Kept):
        def handle(self, record: logging.LogRecord) -> bool:
            if record.getMessage() == "1":
                raise error
            self.emit(record)
            return True

    handler = Raises()
    with attached(handler), mpkit.TaskPool(1, log=True) as pool:
        pool.map(say, ["0", "1", "2"])
    assert handler.texts == ["0", "2"]
    assert reported == [error]
    assert "log record" in error.__notes__[0]


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="needs /proc")
def test_a_task_that_writes_into_the_pipe_harms_itself_only(kept: Kept) -> None:
    others = set(pipes().values())  # a forked worker has those of the tests, too
    with mpkit.TaskPool(1, log=True, tasks_per_worker=2) as pool:
        pool.submit(write_into_pipes, others).exception(PATIENCE)
        pool.submit(say, "perhaps").exception(PATIENCE)
        pool.submit(say, "perhaps").exception(PATIENCE)
        until(lambda: pool.submit(say, "certainly").exception(PATIENCE) is None)
        until(lambda: "certainly" in kept.texts)


@pytest.mark.usefixtures("start_method")
def test_a_task_that_closes_all_descriptors_harms_itself_only(kept: Kept) -> None:
    with mpkit.TaskPool(1, log=True) as pool:
        assert pool.submit(poolwork.die, "no descriptors").exception(PATIENCE)
        pool.submit(say, "hello").result(PATIENCE)
    assert kept.texts == ["hello"]


# warnings


@contextlib.contextmanager
def shown(action: Any = "default") -> Iterator[list[warnings.WarningMessage]]:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter(action)
        ignore_forks()
        yield found


def ignore_forks() -> None:
    """From Python 3.12 on a fork may warn of threads, and here there is that of a pool."""
    warnings.filterwarnings("ignore", ".*multi-threaded", DeprecationWarning)


def texts_of(found: list[warnings.WarningMessage]) -> list[str]:
    return [str(message.message) for message in found]


@pytest.mark.usefixtures("start_method")
def test_a_warning_of_many_workers_is_shown_once() -> None:
    together = mpkit.Signal()
    with shown() as found, mpkit.TaskPool(2, log=True) as pool:
        held = pool.submit(poolwork.wait_for, together)
        pool.submit(warn, "careful", UserWarning).result(PATIENCE)
        other = pool.submit(poolwork.wait_for, together)
        together.set()
        assert held.result(PATIENCE) and other.result(PATIENCE)
        pool.starmap(warn, [("careful", UserWarning)] * 20, chunksize=1)
    assert texts_of(found) == ["careful"]
    (message,) = found
    assert message.category is UserWarning
    assert message.filename.endswith("test_pool_log.py")


@pytest.mark.usefixtures("start_method")
def test_the_filters_of_the_parent_decide() -> None:
    with shown("ignore") as found, mpkit.TaskPool(1, log=True) as pool:
        pool.apply(warn, ("careful", UserWarning))
        pool.apply(warn, ("careful", OddWarning))
    assert found == []
    with shown("always") as found, mpkit.TaskPool(1, log=True) as pool:
        pool.starmap(warn, [("careful", UserWarning)] * 3, chunksize=1)
    assert texts_of(found) == ["careful"] * 3
    with shown("error") as found, mpkit.TaskPool(1, log=True) as pool:
        with pytest.raises(UserWarning, match="careful"):
            pool.apply(warn, ("careful", UserWarning))
    assert found == []


@pytest.mark.usefixtures("start_method")
def test_a_filter_may_be_for_several_classes() -> None:
    """Python takes a tuple there, whatever its documentation says."""
    kinds: Any = (UserWarning, OddWarning)
    with shown("always") as found:
        warnings.simplefilter("error", kinds)
        with mpkit.TaskPool(1, log=True) as pool, pytest.raises(UserWarning, match="careful"):
            pool.apply(warn, ("careful", UserWarning))
    assert found == []


@pytest.mark.usefixtures("start_method")
def test_a_warning_whose_class_is_not_here_is_shown_as_of_its_base() -> None:
    with shown() as found, mpkit.TaskPool(1, log=True) as pool:
        pool.apply(warn_oddly)
    assert texts_of(found) == ["Local: of here", "odd 2 1"]
    assert [message.category for message in found] == [DeprecationWarning, OddWarning]


@pytest.mark.usefixtures("start_method")
def test_warnings_become_records_if_that_is_what_the_parent_does_with_them() -> None:
    handler, logger = Kept(), logging.getLogger("py.warnings")
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            ignore_forks()
            logging.captureWarnings(True)
            with mpkit.TaskPool(1, log=True) as pool:
                pool.apply(warn, ("careful", UserWarning))
    finally:
        logging.captureWarnings(False)
        logger.removeHandler(handler)
    (text,) = handler.texts
    assert "UserWarning: careful" in text


# what can be asked


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"log": "loud"}, ValueError, "none called 'loud'"),
    ({"log": 1.5}, TypeError, "log is a whole number"),
    ({"log": -1}, ValueError, "log is 0 or more"),
]


@pytest.mark.parametrize(("settings", "kind", "words"), REFUSED)
def test_a_wrong_level_is_refused(
    settings: dict[str, Any], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        mpkit.TaskPool(1, **settings)


@pytest.mark.parametrize("level", [True, 0, "INFO"])
def test_a_pool_on_an_executor_does_not_log(level: Any) -> None:
    with mpkit.TaskPool(1) as pool, pytest.raises(ValueError, match="log= makes no sense"):
        mpkit.TaskPool(on=pool.executor, log=level)


def test_a_pool_without_workers_just_logs(kept: Kept) -> None:
    with mpkit.TaskPool(0, log=True) as pool:
        pool.apply(say, ("hello",))
        assert kept.texts == ["hello"]


def test_nothing_is_sent_if_nothing_is_asked() -> None:
    with mpkit.TaskPool(1, log=False) as pool:
        pool.apply(say, ("hello",))
        assert all(thread.name != "mpkit log" for thread in threading.enumerate())
