"""What tasks write to standard output and error."""

from __future__ import annotations

import ctypes
import io
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import mpkit
from mpkit._worker import capture
from tests import poolwork
from tests.support import PATIENCE

if TYPE_CHECKING:
    from pathlib import Path


def write(text: str) -> str:
    print(text)
    return text


def write_in_all_ways() -> None:
    print("print", end="|")
    os.write(1, b"write|")
    subprocess.run(["sh", "-c", "echo child; echo error >&2"], check=True)
    ctypes.CDLL(None).write(2, b"C code|", 7)
    print("stderr", file=sys.stderr)


def write_and_die(how: str) -> None:
    print("last words", end="")
    poolwork.die(how)


def write_and_wait(began: mpkit.Signal) -> None:
    print("waiting")
    began.set()
    poolwork.sleep_for_ever()


def write_much(count: int) -> None:
    for _ in range(count):
        os.write(2, b"x" * 1_000_000)
    print("the end")


def spoil(how: str) -> None:
    print("spoilt")
    if how == "closed":
        os.close(1)
        os.close(2)
    if how == "stream closed":
        sys.stdout.close()
    if how == "replaced":
        sys.stdout = io.StringIO()
        sys.stderr = None  # type: ignore[assignment]


def fail_twice(path: str) -> str:
    with open(path, "a+") as file:
        file.write("x")
        file.seek(0)
        attempt = len(file.read())
    print(f"attempt {attempt}")
    if attempt < 3:
        raise ConnectionError("not yet")
    return "done"


def notes_of(error: BaseException | None) -> str:
    return "\n".join(getattr(error, "__notes__", []))


@pytest.mark.usefixtures("start_method")
def test_all_that_a_task_writes_is_kept_in_order(capfd: pytest.CaptureFixture[str]) -> None:
    with mpkit.TaskPool(1, capture=True) as pool:
        task = pool.submit(write_in_all_ways)
    assert task.output == "print|write|child\nerror\nC code|stderr\n"
    assert capfd.readouterr() == ("", "")


#: A program whose C library keeps back what is printed, as that goes to no terminal.
PRINTS_BY_C = """
import ctypes, sys
import mpkit

def prints(text):
    ctypes.CDLL(None).printf(text + b"|")
    print("Python", end="|")

if __name__ == "__main__":
    ctypes.CDLL(None).printf(b"the parent's\\n")
    with mpkit.TaskPool(1, context=sys.argv[1], capture=True) as pool:
        tasks = [pool.submit(prints, text) for text in (b"one", b"two")]
    print([task.output for task in tasks], file=sys.stderr)
"""


#: A program that has a stream from before its workers began, as a default.
PRINTS_TO_A_DEFAULT = """
import sys
import mpkit

if __name__ == "__mp_main__":
    print("a worker's beginning")

def prints(text, to=sys.stdout):
    print(text, end="|", file=to)

if __name__ == "__main__":
    print("the parent's")
    with mpkit.TaskPool(1, context=sys.argv[1], capture=True) as pool:
        tasks = [pool.submit(prints, text) for text in ("one", "two")]
    print([task.output for task in tasks], file=sys.stderr)
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize(
    ("text", "outputs"),
    [
        (PRINTS_BY_C, ["one|Python|", "two|Python|"]),
        (PRINTS_TO_A_DEFAULT, ["one|", "two|"]),
    ],
    ids=["C", "default"],
)
def test_what_is_in_a_buffer_is_that_of_its_task(
    text: str, outputs: list[str], method: str, tmp_path: Path
) -> None:
    program = tmp_path / "program.py"
    program.write_text(text)
    buffered = {name: it for name, it in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, str(program), method]
    ran = subprocess.run(command, capture_output=True, text=True, env=buffered, timeout=PATIENCE)
    assert ran.stderr == f"{outputs}\n"
    assert ran.stdout.replace("a worker's beginning\n", "") == "the parent's\n"


#: Not "forkserver": its workers have the streams of the server, which may run for long.
OUR_STREAMS = ["fork", "spawn"]


@pytest.mark.parametrize("method", OUR_STREAMS)
def test_streams_are_left_alone_unless_that_is_asked(
    method: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with mpkit.TaskPool(1, context=method, capture=False) as pool:
        task = pool.submit(write_in_all_ways)
    assert task.output == ""
    out, err = capfd.readouterr()
    assert "child\n" in out
    assert "C code" in err


@pytest.mark.parametrize("method", OUR_STREAMS)
def test_what_no_task_writes_goes_where_it_always_does(
    method: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with mpkit.TaskPool(1, write, ("begun",), context=method, capture=True) as pool:
        pool.submit(write, "task").result(PATIENCE)
    assert capfd.readouterr().out == "begun\n"


@pytest.mark.usefixtures("start_method")
def test_each_task_has_its_own_output_when_it_is_done() -> None:
    with mpkit.TaskPool(2, capture=True) as pool:
        tasks = [pool.submit(write, f"task {number}") for number in range(200)]
        for number, task in enumerate(tasks):
            assert task.result(PATIENCE) == f"task {number}"
            assert task.output == f"task {number}\n"


@pytest.mark.usefixtures("start_method")
def test_a_map_has_the_output_of_all_its_tasks() -> None:
    with mpkit.TaskPool(2, capture=True) as pool:
        whole = pool.map_async(write, [str(number) for number in range(100)])
        assert len(whole.result(PATIENCE)) == 100
    assert sorted(whole.output.split(), key=int) == [str(number) for number in range(100)]


@pytest.mark.usefixtures("start_method")
@pytest.mark.parametrize("how", ["exception", "SIGKILL", "SIGSEGV", "os._exit", "sys.exit"])
def test_the_error_of_a_task_shows_what_it_wrote(how: str) -> None:
    with mpkit.TaskPool(1, capture=True) as pool:
        task = pool.submit(write_and_die, how)
        error = task.exception(PATIENCE)
        assert task.output.startswith("last words")
        assert f"{task.name} wrote:\nlast words" in notes_of(error)
        with pytest.raises(Exception) as caught:
            pool.apply(write_and_die, (how,))
        assert "last words" in notes_of(caught.value)
        assert pool.submit(write, "next").result(PATIENCE) == "next"


@pytest.mark.usefixtures("start_method")
def test_a_task_that_is_ended_from_outside_shows_what_it_wrote() -> None:
    began = mpkit.Signal()
    with mpkit.TaskPool(1, capture=True) as pool:
        killed = pool.submit(write_and_wait, began)
        assert began.wait(PATIENCE)
        killed.kill()
        assert "waiting" in notes_of(killed.exception(PATIENCE))
        assert pool.submit(write, "begun").result(PATIENCE) == "begun"
        late = pool.options(timeout=3).submit(write_and_wait, began)
        assert isinstance(late.exception(PATIENCE), mpkit.TaskTimeout)
        assert late.output == "waiting\n"
    pool = mpkit.TaskPool(1, capture=True)
    began.clear()
    stopped = pool.submit(write_and_wait, began)
    assert began.wait(PATIENCE)
    pool.terminate()
    assert pool.join(PATIENCE)
    assert stopped.output == "waiting\n"


@pytest.mark.usefixtures("start_method")
def test_the_error_of_an_item_shows_what_its_chunk_wrote() -> None:
    with mpkit.TaskPool(1, capture=True) as pool:
        results = pool.imap(write_and_die, ["exception"])
        with pytest.raises(LookupError) as caught:
            next(results)
    assert "last words" in notes_of(caught.value)


def test_of_much_output_the_end_is_kept() -> None:
    with mpkit.TaskPool(1, capture=True) as pool:
        task = pool.submit(write_much, 6)
        next_one = pool.submit(write, "next")
    left_out = 6_000_000 + len("the end\n") - capture.MOST
    assert task.output.startswith(f"[{left_out:,} bytes are left out here]\nxxx")
    assert task.output.endswith("xxxthe end\n")
    assert next_one.output == "next\n"


@pytest.mark.usefixtures("start_method")
@pytest.mark.parametrize("how", ["closed", "stream closed", "replaced"])
def test_a_task_that_spoils_its_streams_spoils_no_output(how: str) -> None:
    with mpkit.TaskPool(1, capture=True) as pool:
        spoilt, after = pool.submit(spoil, how), pool.submit(os.write, 1, b"after")
    assert (spoilt.output, after.output) == ("spoilt\n", "after")


def test_a_task_that_is_tried_again_has_the_output_of_all_attempts(tmp_path: Path) -> None:
    with mpkit.TaskPool(1, capture=True) as pool:
        patient = pool.options(retries=2, retry_on=(ConnectionError,))
        task = patient.submit(fail_twice, str(tmp_path / "attempts"))
        assert task.result(PATIENCE) == "done"
    assert task.output == "attempt 1\nattempt 2\nattempt 3\n"


@pytest.mark.usefixtures("start_method")
def test_a_task_that_closes_all_descriptors_harms_itself_only() -> None:
    with mpkit.TaskPool(1, capture=True, log=True) as pool:
        closed = pool.submit(write_and_die, "no descriptors")
        error = closed.exception(PATIENCE)
        assert isinstance(error, mpkit.WorkerDied)
        assert error.exitcode == 0
        task = pool.submit(write, "hello")
        assert task.result(PATIENCE) == "hello"
    assert (closed.output, task.output) == ("last words", "hello\n")


def test_a_program_without_standard_streams_can_have_them_captured(tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    path.write_text(
        "import mpkit, sys\n"
        "with mpkit.TaskPool(1, capture=True, context='fork') as pool:\n"
        "    task = pool.submit(print, 'hello')\n"
        "assert task.result() is None\n"
        "open(sys.argv[1], 'w').write(task.output)\n"
    )
    command = f"exec {sys.executable} {path} {tmp_path / 'out'} >&- 2>&-"
    assert subprocess.run(["sh", "-c", command], check=False).returncode == 0
    assert (tmp_path / "out").read_text() == "hello\n"


def test_a_worker_that_is_killed_between_tasks_has_written_nothing() -> None:
    with mpkit.TaskPool(1, capture=True) as pool:
        first = pool.submit(write, "first")
        assert first.result(PATIENCE) == "first"
        (worker,) = pool.stats().workers
        os.kill(worker.pid, signal.SIGKILL)
        second = pool.submit(write, "second")
        second.exception(PATIENCE)
    assert (first.output, second.output) in (("first\n", "second\n"), ("first\n", ""))


def test_what_cannot_capture_says_so() -> None:
    with mpkit.TaskPool(1) as pool, pytest.raises(ValueError, match="capture= makes no sense"):
        mpkit.TaskPool(on=pool.executor, capture=True)
    with pytest.raises(TypeError, match="capture is True or False"):
        mpkit.TaskPool(1, capture="yes")  # type: ignore[arg-type]
