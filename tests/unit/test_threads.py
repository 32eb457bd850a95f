"""What workers are told of how many threads to start."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mpkit
from mpkit._platform import stdlib, threads
from mpkit._platform.threads import VARIABLES, Threads

SPAWN = multiprocessing.get_context("spawn")
FORK = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def told(workers: int, asked: int | None = None, context: Any = SPAWN) -> Threads:
    found = threads.of_workers(workers, asked, context)
    assert found is not None
    return found


@given(workers=st.integers(1, 1000), cores=st.integers(1, 1000))
def test_all_threads_fit_the_machine(workers: int, cores: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threads, "usable_cores", lambda few=1: cores)
        each = told(workers).number
    assert each >= 1
    assert workers * each <= max(cores, workers)
    assert workers * (each + 1) > cores  # and no core has nothing to do


def test_each_library_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "usable_cores", lambda few=1: 9)
    assert told(2).environment == dict.fromkeys(VARIABLES, "4")
    assert told(2, 3).environment == dict.fromkeys(VARIABLES, "3")
    assert threads.of_workers(2, 0, SPAWN) is None


def test_what_the_user_has_set_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "usable_cores", lambda few=1: 4)
    monkeypatch.setenv("MKL_NUM_THREADS", "7")
    monkeypatch.setenv("BLIS_NUM_THREADS", "")  # is not set
    found = told(2)
    assert found.environment == {**dict.fromkeys(VARIABLES, "2"), "MKL_NUM_THREADS": "7"}
    assert set(found.ours) == VARIABLES.keys() - {"MKL_NUM_THREADS"}
    assert told(2, 3).environment == dict.fromkeys(VARIABLES, "3")  # but for who asks


def test_what_the_user_has_said_to_openmp_holds_for_who_listens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With OPENBLAS_NUM_THREADS from us, OpenBLAS would not look at his OMP_NUM_THREADS."""
    monkeypatch.setattr(threads, "usable_cores", lambda few=1: 4)
    monkeypatch.setenv("OMP_NUM_THREADS", "3,2")
    assert told(2).environment == {"OMP_NUM_THREADS": "3,2", "VECLIB_MAXIMUM_THREADS": "2"}


class Library:
    """One that `threadpoolctl` has found."""

    def __init__(self, kind: str, number: int | None) -> None:
        self.internal_api = kind
        self.num_threads = number

    def set_num_threads(self, number: int) -> None:
        self.num_threads = number


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> list[Library]:
    """Have these libraries be loaded, and told by a `threadpoolctl`."""
    found = [
        Library("openmp", 8),
        Library("openblas", 1),
        Library("mkl", 8),
        Library("blis", None),
        Library("flexiblas", 8),
    ]
    module: Any = types.ModuleType("threadpoolctl")
    module.ThreadpoolController = lambda: types.SimpleNamespace(lib_controllers=found)
    monkeypatch.setitem(sys.modules, "threadpoolctl", module)
    monkeypatch.setitem(sys.modules, "numpy", types.ModuleType("numpy"))
    return found


def test_what_is_loaded_is_told_to_start_fewer_but_never_more(
    libraries: list[Library], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "usable_cores", lambda few=1: 4)
    monkeypatch.setenv("MKL_NUM_THREADS", "8")
    told(2)._replace(method="forkserver").arrive()
    assert [library.num_threads for library in libraries] == [2, 1, 8, None, 8]
    assert "OMP_NUM_THREADS" not in os.environ  # for this is no forked worker


def test_who_asks_for_a_number_has_it(libraries: list[Library]) -> None:
    told(2, 3)._replace(method="forkserver").arrive()
    assert [library.num_threads for library in libraries] == [3, 3, 3, 3, 8]


def test_a_spawned_worker_has_nothing_loaded_that_was_not_told(libraries: list[Library]) -> None:
    told(2, 3).arrive()
    assert [library.num_threads for library in libraries] == [8, 1, 8, None, 8]


def test_a_worker_begins_also_if_a_library_cannot_be_told(
    libraries: list[Library], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: Library, number: int) -> None:
        raise OSError("no such symbol")

    monkeypatch.setattr(Library, "set_num_threads", fails)
    with pytest.warns(RuntimeWarning, match="more than 3 threads: OSError: no such symbol"):
        told(2, 3)._replace(method="forkserver").arrive()


def test_without_threadpoolctl_nobody_is_told(
    libraries: list[Library], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    told(2, 3, FORK)._replace(method="forkserver").arrive()
    assert [library.num_threads for library in libraries] == [8, 1, 8, None, 8]


def test_variables_travel_once_and_need_no_package_of_ours() -> None:
    process = types.SimpleNamespace(name="worker é\udc80")
    stdlib.have_environment(process, {"OMP_NUM_THREADS": "1", "ODD": "a'\"\n\udc80"})
    data = pickle.dumps(process.name)
    assert type(process.name) is str
    assert process.name == "worker é\udc80"
    assert b"mpkit" not in data
    code = (
        "import os, pickle, sys\n"
        "name = pickle.load(sys.stdin.buffer)\n"
        "assert type(name) is str and name == 'worker é\\udc80'\n"
        "assert os.environ['OMP_NUM_THREADS'] == '1'\n"
        "assert os.environ['ODD'] == 'a\\'\"\\n\\udc80'\n"
    )
    subprocess.run([sys.executable, "-I", "-S", "-c", code], input=data, check=True)


@pytest.mark.parametrize(
    ("wrong", "error"), [(-1, ValueError), (1.5, TypeError), (True, TypeError), ("2", TypeError)]
)
def test_a_number_that_makes_no_sense_is_refused(wrong: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="threads_per_worker"):
        mpkit.TaskPool(1, threads_per_worker=wrong)


def test_a_pool_without_workers_of_its_own_cannot_tell_them() -> None:
    with mpkit.TaskPool(0, threads_per_worker=2) as pool:  # as for all that is for workers
        assert pool.threads_per_worker is None
    with ThreadPoolExecutor(1) as executor:
        with pytest.raises(ValueError, match="threads_per_worker= makes no sense"):
            mpkit.TaskPool(on=executor, threads_per_worker=2)
        with mpkit.TaskPool(on=executor) as pool:
            assert pool.threads_per_worker is None


def test_handlers_of_signals_are_set_as_by_the_signal_module() -> None:
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        stdlib.handle_signal(signal.SIGUSR1, int(signal.SIG_DFL))
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
        stdlib.handle_signal(signal.SIGUSR1, print)
        assert signal.getsignal(signal.SIGUSR1) is print
    finally:
        signal.signal(signal.SIGUSR1, before)
