"""``on=``: what only a pool on somebody else's executor can get wrong."""

from __future__ import annotations

import concurrent.futures
import contextvars
import importlib.util
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, Any

import pytest

import mpkit
from mpkit._pool.on_executor import _HONOURED
from mpkit._task.options import Options
from tests import poolwork
from tests.documents import ROOT
from tests.support import PATIENCE

if TYPE_CHECKING:
    from pathlib import Path


variable = contextvars.ContextVar("variable", default="")


@pytest.fixture
def processes() -> Any:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as executor:
        yield executor


# what an executor cannot do


def test_an_option_that_nobody_has_thought_of_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpkit._pool.on_executor._HONOURED", frozenset())
    values = {
        "retry_on": (OSError,),
        "name": "it",
        "label": "it",
        "retries": 1,
        "seed": 1,
        "propagate": variable,
    }
    with ThreadPoolExecutor(1) as executor, mpkit.TaskPool(on=executor) as pool:
        for option in _HONOURED:
            with pytest.raises(ValueError, match=f"ThreadPoolExecutor cannot honour {option}="):
                pool.options(**{option: values[option]})  # type: ignore[misc]


def test_the_documentation_names_what_is_refused() -> None:
    text = (ROOT / "docs" / "backends.md").read_text(encoding="utf-8")
    for option in set(Options._fields) - _HONOURED:
        assert f"`{option}`" in text, option


def test_workers_and_traces_are_the_executor_s_affair(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as executor:
        for workers in (0, 2):
            with pytest.raises(ValueError, match="workers=.* on="):
                mpkit.TaskPool(workers, on=executor)
        with mpkit.TaskPool(on=executor) as pool:
            with pytest.raises(ValueError, match="trace"):
                pool.trace(tmp_path / "run.json")


def test_what_is_no_executor_is_refused() -> None:
    with pytest.raises(TypeError, match="Executor"):
        mpkit.TaskPool(on=ThreadPoolExecutor)  # type: ignore[arg-type]


# deaths


def test_a_death_is_told_as_such_and_why_it_was_not_tried_again(processes: Executor) -> None:
    with mpkit.TaskPool(on=processes, retries=3) as pool:
        task = pool.submit(poolwork.die, "SIGKILL")
        error = task.exception(PATIENCE)
        assert isinstance(error, mpkit.WorkerDied)
        assert (error.what, error.pid, error.exitcode) == (task.name, None, None)
        assert "ProcessPoolExecutor" in error.reason
        assert isinstance(error.__cause__, BrokenProcessPool)
        (note,) = error.__notes__
        assert "retries=3 could not be used" in note
        assert task.attempts == 1
        with pytest.raises(mpkit.PoolClosed, match="ProcessPoolExecutor") as caught:
            pool.submit(poolwork.square, 1)
        assert isinstance(caught.value.__cause__, BrokenProcessPool)
        assert pool.stats().lost == 1


def test_a_map_on_a_broken_executor_ends(processes: Executor) -> None:
    with mpkit.TaskPool(on=processes) as pool:
        with pytest.raises(mpkit.WorkerDied):
            pool.map(poolwork.die, ["SIGKILL"] * 3, 1)
        with pytest.raises(mpkit.PoolClosed):
            pool.map(poolwork.square, range(3))
        with pytest.raises(mpkit.PoolClosed):
            list(pool.imap(poolwork.square, range(3)))


def test_an_initializer_of_threads_that_failed_is_told_as_such(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with ThreadPoolExecutor(1, initializer=poolwork.fail_in_initializer) as executor:
        with mpkit.TaskPool(on=executor) as pool:
            try:
                error = pool.submit(poolwork.square, 1).exception(PATIENCE)
            except mpkit.PoolClosed as closed:  # it had failed by then
                error = closed
            assert isinstance(error, (mpkit.WorkerInitError, mpkit.PoolClosed))
            assert isinstance(error.__cause__, concurrent.futures.BrokenExecutor)


def test_a_callback_of_a_task_that_has_died_may_submit_another(processes: Executor) -> None:
    """From Python 3.12 on the executor calls it while it holds the lock that its submit takes."""
    refused: list[BaseException] = []
    with mpkit.TaskPool(on=processes) as pool:

        def submit(_: object) -> None:
            try:
                pool.submit(poolwork.square, 1)
            except RuntimeError as error:
                refused.append(error)

        task = pool.apply_async(poolwork.die, ("SIGKILL",), error_callback=submit)
        assert isinstance(task.exception(PATIENCE), mpkit.WorkerDied)
    assert [type(error) for error in refused] == [mpkit.PoolClosed]


# cancellation


def test_a_task_that_runs_is_not_cancelled_and_one_that_was_cancelled_does_not_run() -> None:
    began, go = threading.Event(), threading.Event()
    ran: list[int] = []

    def wait() -> str:
        began.set()
        go.wait(PATIENCE)
        return "ran"

    with ThreadPoolExecutor(1) as executor, mpkit.TaskPool(on=executor) as pool:
        running, waiting = pool.submit(wait), pool.submit(ran.append, 1)
        assert began.wait(PATIENCE)
        assert not running.cancel()
        assert not running.kill()
        assert waiting.kill()
        assert concurrent.futures.wait([waiting], PATIENCE).done == {waiting}
        go.set()
        assert running.result(PATIENCE) == "ran"
    assert not ran


def test_what_its_owner_drops_is_cancelled() -> None:
    began, go = threading.Event(), threading.Event()
    executor = ThreadPoolExecutor(1)
    with mpkit.TaskPool(on=executor) as pool:
        pool.submit(poolwork.set_and_wait, began, go)
        tasks = [pool.submit(poolwork.square, n) for n in range(3)]
        assert began.wait(PATIENCE)
        executor.shutdown(wait=False, cancel_futures=True)
        assert all(task.cancelled() for task in tasks)
        assert len(concurrent.futures.wait(tasks, PATIENCE).done) == 3
        with pytest.raises(mpkit.PoolClosed, match="shutdown"):
            pool.submit(poolwork.square, 1)
        go.set()
    executor.shutdown()


def test_terminate_cancels_what_waits_and_join_waits_for_what_runs() -> None:
    began, go = threading.Event(), threading.Event()
    with ThreadPoolExecutor(1) as executor:
        pool = mpkit.TaskPool(on=executor)
        running = pool.submit(poolwork.set_and_wait, began, go)
        waiting = pool.map_async(poolwork.square, range(9))
        assert began.wait(PATIENCE)
        pool.terminate()
        with pytest.raises(concurrent.futures.CancelledError):
            waiting.result(PATIENCE)
        assert not pool.join(0)
        go.set()
        assert pool.join(PATIENCE)
        assert running.done()


# calls


def test_keywords_of_a_call_are_not_those_of_the_executor() -> None:
    class Greedy(ThreadPoolExecutor):
        def submit(self, fn: Any, *args: Any, priority: int = 0, **kwargs: Any) -> Any:
            assert not priority
            return super().submit(fn, *args, **kwargs)

    with Greedy(1) as executor, mpkit.TaskPool(on=executor) as pool:
        assert pool.submit(dict, fn=1, self=2, priority=3).result(PATIENCE) == {
            "fn": 1,
            "self": 2,
            "priority": 3,
        }


def test_a_pool_may_run_on_a_pool() -> None:
    with mpkit.TaskPool(1) as inner, mpkit.TaskPool(on=inner.executor) as pool:
        assert pool.map(poolwork.square, range(5)) == [0, 1, 4, 9, 16]
        assert isinstance(
            pool.submit(poolwork.die, "SIGKILL").exception(PATIENCE), mpkit.WorkerDied
        )
        assert pool.apply(os.getpid) != os.getpid()


def test_interpreters() -> None:
    kind: Any = getattr(concurrent.futures, "InterpreterPoolExecutor", None)
    if kind is None:
        pytest.skip("this Python has no InterpreterPoolExecutor (3.14 has)")
    with kind(2) as executor, mpkit.TaskPool(on=executor) as pool:
        assert pool.submit(pow, 2, 3).result(PATIENCE) == 8


# others' executors, in programs of their own: they leave threads, and helpers, until the end

LOKY = """
import os, signal, loky, mpkit
from loky.process_executor import TerminatedWorkerError
from tests import poolwork

if __name__ == "__main__":
    with loky.ProcessPoolExecutor(2) as executor, mpkit.TaskPool(on=executor, retries=1) as pool:
        assert pool.map(poolwork.square, range(100)) == [n * n for n in range(100)]
        assert list(pool.imap(lambda n: n + 1, range(10), 3)) == list(range(1, 11))
        assert isinstance(pool.submit(poolwork.die, "sys.exit").exception(30), mpkit.TaskExit)
        assert pool.apply(os.getpid) != os.getpid()
        assert pool._backend.workers == 2
        error = pool.submit(poolwork.die, "SIGKILL").exception(30)
        assert type(error) is mpkit.WorkerDied and "SIGKILL" in error.reason, error
        assert isinstance(error.__cause__, TerminatedWorkerError)
        assert "retries=1 could not be used" in error.__notes__[0]
        try:
            pool.submit(poolwork.square, 1)
        except mpkit.PoolClosed as closed:
            print("closed:", closed)
"""

DASK = """
import dask, os, signal, uuid, mpkit
from distributed import Client, LocalCluster
from distributed.scheduler import KilledWorker
from tests import poolwork

if __name__ == "__main__":
    dask.config.set({"distributed.scheduler.allowed-failures": 0})
    cluster = LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=":0", processes=True
    )
    with cluster, Client(cluster) as client:
        with mpkit.TaskPool(on=client.get_executor()) as pool:
            assert pool._backend.workers == 2
            assert pool.map(poolwork.square, range(100)) == [n * n for n in range(100)]
            assert list(pool.imap(poolwork.square, range(20), 3)) == [n * n for n in range(20)]
            assert pool.submit(poolwork.add, 1, right=2).result(30) == 3
            # The same call twice is two calls, though Dask has both at the same time.
            busy = [pool.submit(poolwork.be_busy, 0.5) for _ in range(2)]
            tasks = [pool.submit(uuid.uuid4) for _ in range(20)]
            assert len({task.result(30) for task in tasks}) == 20
            assert isinstance(pool.submit(poolwork.picky, -1).exception(30), ValueError)
            error = pool.submit(poolwork.die, "SIGKILL").exception(60)
            assert isinstance(error, mpkit.WorkerDied), error
            assert isinstance(error.__cause__, KilledWorker)
            # Dask replaces its workers, so there is something to retry on.
            path = os.path.abspath("crashed")
            again = pool.options(retries=1).submit(poolwork.crash_once, path)
            assert again.result(60) == "survived" and again.attempts == 2
            try:
                pool.options(priority=1)
            except ValueError as error:
                print(error)
            stats = pool.stats()
            assert stats.lost == 2 and stats.failed == 2 and stats.retries == 1, stats
        executor = client.get_executor(pure=True)
        with mpkit.TaskPool(on=executor) as pool:
            assert pool.apply(poolwork.square, (3,)) == 9
            executor.shutdown()
            try:
                pool.submit(poolwork.square, 1)
            except mpkit.PoolClosed as closed:
                print("closed:", closed)
"""


#: (Not what it does when a process dies: MPI ends all of them then, this program included.)
MPI = """
import os, sys, threading, mpkit
from mpi4py.futures import MPIPoolExecutor
from tests import poolwork

if __name__ == "__main__":
    with MPIPoolExecutor() as executor, mpkit.TaskPool(on=executor) as pool:
        assert pool._backend.workers == 2
        assert pool.map(poolwork.square, range(100)) == [n * n for n in range(100)]
        assert list(pool.imap(poolwork.square, range(20), 3)) == [n * n for n in range(20)]
        assert pool.submit(poolwork.add, 1, right=2).result(30) == 3
        assert pool.apply(os.getpid) != os.getpid()
        error = pool.submit(poolwork.picky, -1).exception(30)
        assert isinstance(error, ValueError) and "picky" in str(error.__cause__), error
        assert isinstance(pool.submit(poolwork.die, "sys.exit").exception(30), mpkit.TaskExit)
        assert isinstance(pool.submit(str, threading.Lock()).exception(30), TypeError)
        view = pool.options(retries=2, retry_on=(ConnectionError,))
        assert view.submit(poolwork.fail_so_often, os.path.abspath("notes"), 2).result(30) == 3
        for option in ({"timeout": 1}, {"priority": 1}):
            try:
                pool.options(**option)
            except ValueError as error:
                print(error)
        executor.shutdown()
        try:
            pool.submit(poolwork.square, 1)
        except mpkit.PoolClosed as closed:
            print("closed:", closed)
    sys.stdout.flush()
"""


@pytest.mark.parametrize(
    ("module", "start", "code", "said"),
    [
        ("loky", [], LOKY, ["closed: the pool takes no more tasks: its ProcessPoolExecutor does"]),
        ("distributed", [], DASK, ["ClientExecutor cannot honour priority=", "closed: the pool"]),
        (
            "mpi4py",
            ["-m", "mpi4py.futures"],
            MPI,
            [
                "MPIPoolExecutor cannot honour timeout=",
                "cannot honour priority=",
                "closed: the pool",
            ],
        ),
    ],
    ids=["loky", "dask", "mpi"],
)
def test_others_executors(
    module: str, start: list[str], code: str, said: list[str], tmp_path: Path
) -> None:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed (the extra `test` has it)")
    program = tmp_path / "program.py"
    program.write_text(code)
    path = os.pathsep.join([str(ROOT), *sys.path])
    command = [sys.executable, *start, str(program)]
    if module == "mpi4py":
        mpiexec = shutil.which("mpiexec", path=os.path.dirname(sys.executable))
        if mpiexec is None:
            pytest.skip("the package mpich is not installed (the extra `test` has it)")
        command = [mpiexec, "-n", "3", *command]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,
    ) as ran:
        try:
            out, err = ran.communicate(timeout=5 * PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(ran.pid, signal.SIGKILL)
            raise
    assert ran.returncode == 0, err
    for text in said:
        assert text in out
