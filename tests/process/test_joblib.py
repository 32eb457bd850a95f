"""joblib on a TaskPool: what `joblib.Parallel` promises, and what becomes of it by a death."""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

import mpkit
from tests import poolwork
from tests.support import PATIENCE, python

joblib = pytest.importorskip("joblib")
import mpkit.joblib  # noqa: E402  which needs the one above

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support import Spawn

delayed = joblib.delayed


@pytest.fixture
def config() -> Iterator[Any]:
    """Have joblib use mpkit, two workers at a time."""
    with joblib.parallel_config("mpkit", n_jobs=2) as config:
        yield config


@pytest.fixture
def pool() -> Iterator[mpkit.TaskPool]:
    """Have joblib use a pool that is there before and after."""
    with mpkit.TaskPool(2) as pool, joblib.parallel_config("mpkit", pool=pool):
        yield pool


def squares(count: int) -> list[int]:
    return [n * n for n in range(count)]


def calls(fn: Any, items: Any) -> Iterator[Any]:
    return (delayed(fn)(item) for item in items)


# what it promises


@pytest.mark.usefixtures("start_method", "config")
@pytest.mark.parametrize("return_as", ["list", "generator", "generator_unordered"])
def test_results_are_those_of_the_loop(return_as: str) -> None:
    results = joblib.Parallel(return_as=return_as)(calls(poolwork.square, range(50)))
    assert (sorted(results) if "unordered" in return_as else list(results)) == squares(50)


@pytest.mark.usefixtures("start_method")
def test_it_is_workers_that_run_them() -> None:
    with mpkit.TaskPool(2) as pool:
        with joblib.parallel_config("mpkit", pool=pool):
            pids = set(joblib.Parallel()(calls(poolwork.pid_of_worker, range(64))))
        ours = {worker.pid for worker in pool.stats().workers}
    assert pids <= ours
    others = set(joblib.Parallel(2, backend="mpkit")(calls(poolwork.pid_of_worker, range(64))))
    assert others.isdisjoint({os.getpid(), *ours})


def test_short_calls_travel_in_batches(pool: mpkit.TaskPool) -> None:
    assert joblib.Parallel()(calls(poolwork.square, range(3000))) == squares(3000)
    assert pool.stats().done < 1500


def test_calls_with_a_timeout_travel_alone(pool: mpkit.TaskPool) -> None:
    with joblib.parallel_config("mpkit", pool=pool, timeout=PATIENCE):
        assert joblib.Parallel()(calls(poolwork.square, range(300))) == squares(300)
    assert pool.stats().done == 300


@pytest.mark.usefixtures("config")
def test_two_generators_at_a_time_have_workers_each() -> None:
    first = joblib.Parallel(return_as="generator")(calls(poolwork.square, range(30)))
    second = joblib.Parallel(return_as="generator")(calls(abs, range(30)))
    assert list(zip(first, second)) == list(zip(squares(30), range(30)))


@pytest.mark.usefixtures("config")
def test_a_parallel_that_is_entered_keeps_its_workers_and_goes_on_after_a_failure() -> None:
    with joblib.Parallel() as parallel:
        before = set(parallel(calls(poolwork.pid_of_worker, range(20))))
        assert set(parallel(calls(poolwork.pid_of_worker, range(20)))) & before
        with pytest.raises(LookupError):
            parallel(calls(poolwork.die, ["exception"]))
        assert parallel(calls(poolwork.square, range(20))) == squares(20)
    assert parallel(calls(poolwork.square, range(20))) == squares(20)  # with others


@pytest.mark.usefixtures("start_method", "config")
def test_calls_may_call_joblib_again() -> None:
    assert joblib.Parallel()(calls(sum_of_squares, [3, 4])) == [5, 14]
    assert joblib.Parallel()(calls(sum_of_squares_in_workers, [3, 4])) == [5, 14]


def sum_of_squares(count: int) -> int:
    return sum(joblib.Parallel(2)(calls(poolwork.square, range(count))))


def sum_of_squares_in_workers(count: int) -> int:
    return sum(joblib.Parallel(2, backend="mpkit")(calls(poolwork.square, range(count))))


@pytest.mark.usefixtures("start_method", "config")
def test_large_arrays_arrive() -> None:
    numpy = pytest.importorskip("numpy")
    arrays = [numpy.full(500_000, n) for n in range(6)]
    doubled = joblib.Parallel()(calls(numpy.negative, arrays))
    assert all((left == -right).all() for left, right in zip(doubled, arrays))


@pytest.mark.usefixtures("start_method")
def test_random_numbers_are_those_of_a_call_whatever_the_batches_and_workers() -> None:
    with joblib.parallel_config("mpkit", n_jobs=2, seed=7):
        first, second = (joblib.Parallel()(calls(draw, range(40))) for _ in range(2))
    assert len({*first, *second}) == 80
    with mpkit.TaskPool(3) as pool, joblib.parallel_config("mpkit", pool=pool, seed=7):
        assert joblib.Parallel(batch_size=9)(calls(draw, range(40))) == first
        assert joblib.Parallel(batch_size=1)(calls(draw, range(40))) == second
    with mpkit.TaskPool(2, seed=7) as pool:
        parallel = joblib.Parallel(2, backend="mpkit", pool=pool, batch_size=7)
        assert parallel(calls(draw, range(40))) == first
        assert parallel(calls(draw, range(40))) == second
        parallel = joblib.Parallel(2, backend="mpkit", pool=pool, seed=7)
        assert parallel(calls(draw, range(40))) == first


def draw(_: int) -> float:
    return float(mpkit.rng().random())


# which pool, and how many


def test_a_pool_of_one_worker_is_used() -> None:
    with mpkit.TaskPool(1) as pool, joblib.parallel_config("mpkit", pool=pool):
        pids = joblib.Parallel()(calls(poolwork.pid_of_worker, range(10)))
        assert set(pids) == {pool.apply(os.getpid)}


def test_a_pool_of_no_workers_runs_any_number_of_calls_here() -> None:
    with mpkit.TaskPool(0) as pool, joblib.parallel_config("mpkit", pool=pool):
        many = sys.getrecursionlimit()
        assert joblib.Parallel(batch_size=1)(calls(poolwork.square, range(many))) == squares(many)
    assert pool.stats().done == many


def test_one_job_is_run_by_joblib_itself() -> None:
    pids = joblib.Parallel(1, backend="mpkit")(calls(poolwork.pid_of_worker, range(3)))
    assert set(pids) == {os.getpid()}


def test_the_number_of_jobs_is_counted_as_by_joblib() -> None:
    cores = joblib.cpu_count()
    with joblib.parallel_config("mpkit"):
        assert joblib.effective_n_jobs() == cores
        assert joblib.effective_n_jobs(7) == 7
        assert joblib.effective_n_jobs(-2) == max(1, cores - 1)
        with pytest.raises(ValueError, match="n_jobs"):
            joblib.effective_n_jobs(0)
    with mpkit.TaskPool(3) as pool, joblib.parallel_config("mpkit", pool=pool):
        assert joblib.effective_n_jobs() == 3
        assert joblib.effective_n_jobs(2) == 2
        assert joblib.effective_n_jobs(7) == 3
        assert joblib.effective_n_jobs(-2) == 2
        assert joblib.effective_n_jobs(1) == 1
        assert joblib.effective_n_jobs(-9) == 2  # which take turns: see below


@pytest.mark.parametrize("n_jobs", [-3, 2])
def test_no_more_jobs_run_at_a_time_than_were_asked_for(n_jobs: int) -> None:
    with mpkit.TaskPool(3) as pool, joblib.parallel_config("mpkit", pool=pool, n_jobs=n_jobs):
        parallel = joblib.Parallel(batch_size=1, pre_dispatch="all")
        times: list[tuple[int, int]] = parallel(calls(begin_and_end, range(60)))
    changes = sorted([(begin, 1) for begin, _ in times] + [(end, -1) for _, end in times])
    at_a_time = itertools.accumulate(change for _, change in changes)
    assert max(at_a_time) <= (1 if n_jobs < 0 else n_jobs)


def begin_and_end(_: int) -> tuple[int, int]:
    begin = time.monotonic_ns()
    time.sleep(0.002)  # long enough for others to come, if they could
    return begin, time.monotonic_ns()


def test_options_are_honoured_where_there_is_one_core_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(joblib, "cpu_count", lambda: 1)
    with joblib.parallel_config("mpkit", retries=1):
        pids = set(joblib.Parallel()(calls(poolwork.pid_of_worker, range(9))))
        assert len(pids - {os.getpid()}) == 1
    with joblib.parallel_config("mpkit"):
        assert joblib.effective_n_jobs() == 1


def test_options_may_be_given_with_the_backend_or_by_a_view(tmp_path: Any) -> None:
    paths = (str(path) for path in map(tmp_path.joinpath, "abcd"))
    with mpkit.TaskPool(2) as pool:
        for how in (
            {"pool": pool, "retries": 1},
            {"pool": pool.options(retries=1)},
            {"n_jobs": 2, "retries": 1},
        ):
            with joblib.parallel_config("mpkit", **how):
                assert joblib.Parallel()(calls(die_once, [next(paths)] * 2)) == ["lived"] * 2
        parallel = joblib.Parallel(backend="mpkit", n_jobs=2, pool=pool, retries=1)
        assert parallel(calls(die_once, [next(paths)] * 2)) == ["lived"] * 2
        assert pool.stats().done == 6


def die_once(path: str) -> str:
    if poolwork.first_time(path):
        os._exit(3)
    return "lived"


@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        ({"pool": 5}, TypeError, "pool is a TaskPool or a view"),
        ({"retries": "2"}, TypeError, "retries is a whole number"),
        ({"retries": -1}, ValueError, "retries is not negative"),
        ({"patience": 1}, TypeError, "no option 'patience'"),
    ],
)
def test_what_makes_no_sense_is_said_at_once(
    wrong: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        joblib.parallel_config("mpkit", **wrong)
    with pytest.raises(error, match=says):
        joblib.Parallel(2, backend="mpkit", **wrong)(calls(abs, [1]))


def test_what_cannot_be_honoured_is_refused() -> None:
    with ThreadPoolExecutor(1) as executor, mpkit.TaskPool(on=executor) as pool:
        with pytest.raises(ValueError, match="timeout"):
            joblib.parallel_config("mpkit", pool=pool, timeout=1)
    with pytest.raises(ValueError, match=r"mmap_mode='r\+'"):
        joblib.Parallel(2, backend="mpkit", mmap_mode="r+")(calls(abs, [1]))


@pytest.mark.usefixtures("start_method")
def test_a_daemonic_process_runs_them_itself(spawn: Spawn) -> None:
    here, there = mpkit.channel(send=type(None), recv=list)
    with here:
        process: Any = multiprocessing.get_context().Process(
            target=in_a_daemon, args=(there,), daemon=True
        )
        process.start()
        there.close()
        assert here.recv(PATIENCE) == [
            squares(5),
            "a daemonic process can have no workers: n_jobs=1",
        ]
        process.join(PATIENCE)


def in_a_daemon(said: mpkit.Channel[list[Any], None]) -> None:
    with pytest.warns(UserWarning, match="daemonic") as warned:
        results = joblib.Parallel(2, backend="mpkit")(calls(poolwork.square, range(5)))
    said.send([results, str(warned[0].message)])


# when something goes wrong


@pytest.mark.usefixtures("start_method", "config")
def test_an_error_is_raised_with_its_traceback_and_ends_what_runs() -> None:
    """The call that never ends has its worker killed, or the test would not end."""
    began = mpkit.Signal()
    both = [(poolwork.sleep_for_ever, began), (fail_after, began)]
    with pytest.raises(LookupError, match="no such thing") as caught:
        joblib.Parallel()(delayed(fn)(argument) for fn, argument in both)
    assert isinstance(caught.value.__cause__, mpkit.RemoteTraceback)


def fail_after(began: mpkit.Signal) -> None:
    began.wait(PATIENCE)
    poolwork.die("exception")


def test_an_error_ends_its_own_calls_and_no_others_in_the_pool() -> None:
    began, go, others_began = mpkit.Signal(), mpkit.Signal(), mpkit.Signal()
    with mpkit.TaskPool(3) as pool, joblib.parallel_config("mpkit", pool=pool):
        others = pool.submit(poolwork.tell_and_wait, others_began, go)
        assert others_began.wait(PATIENCE)
        both = [(poolwork.sleep_for_ever, began), (fail_after, began)]
        with pytest.raises(LookupError):
            joblib.Parallel(2)(delayed(fn)(argument) for fn, argument in both)
        assert joblib.Parallel()(calls(poolwork.square, range(9))) == squares(9)
        assert others.running()
        go.set()
        assert others.result(PATIENCE)


@pytest.mark.usefixtures("start_method", "config")
def test_the_death_of_a_worker_is_told() -> None:
    with pytest.raises(mpkit.WorkerDied, match="SIGKILL"):
        joblib.Parallel()(calls(poolwork.die, ["SIGKILL"] * 4))
    assert joblib.Parallel()(calls(poolwork.square, range(9))) == squares(9)


@pytest.mark.usefixtures("config")
def test_one_that_takes_too_long_is_ended() -> None:
    with pytest.raises(multiprocessing.TimeoutError):  # joblib's own
        joblib.Parallel(timeout=0.1)(calls(poolwork.sleep_for_ever, [None, None]))
    with pytest.raises(mpkit.TaskTimeout):
        with joblib.parallel_config("mpkit", n_jobs=2, timeout=0.1):
            joblib.Parallel()(calls(poolwork.sleep_for_ever, [None, None]))


@pytest.mark.parametrize("place", [0, 3, 20])
def test_what_cannot_travel_is_told_wherever_it_comes(pool: mpkit.TaskPool, place: int) -> None:
    """Most calls are submitted from a callback, in a thread that nobody waits for."""
    items = [*range(place), threading.Lock(), *range(30)]
    with pytest.raises(mpkit.NotPicklable, match="lock"):
        joblib.Parallel(batch_size=1)(calls(poolwork.pid_of_worker, items))


@pytest.mark.parametrize("place", [0, 3, 20])
@pytest.mark.usefixtures("config")
def test_input_that_raises_is_told_wherever_it_does(place: int) -> None:
    def broken() -> Iterator[int]:
        yield from range(place)
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        joblib.Parallel(batch_size=1)(calls(poolwork.square, broken()))


def test_a_closed_pool_is_told() -> None:
    with mpkit.TaskPool(2) as pool:
        pass
    with joblib.parallel_config("mpkit", pool=pool), pytest.raises(mpkit.PoolClosed):
        joblib.Parallel()(calls(abs, [1, 2]))


@pytest.mark.filterwarnings("ignore:.*tasks which were still being processed:UserWarning")
@pytest.mark.filterwarnings("ignore:.*tasks have been successfully executed:UserWarning")
def test_a_generator_that_is_dropped_ends_what_runs(pool: mpkit.TaskPool) -> None:
    go, began = mpkit.Signal(), mpkit.Signal()
    go.set()
    endless = itertools.chain([go], itertools.repeat(began))
    results = joblib.Parallel(return_as="generator", batch_size=1)(
        calls(poolwork.wait_for, endless)
    )
    assert next(results)
    del results
    gc.collect()
    assert pool.map_async(poolwork.square, range(9)).get(PATIENCE) == squares(9)


INTERRUPTED = """
import signal, sys, joblib, mpkit.joblib, mpkit
from tests import poolwork

signal.signal(signal.SIGINT, signal.default_int_handler)
if __name__ == "__main__":
    began = mpkit.Signal(name=sys.argv[1])
    try:
        with joblib.parallel_config("mpkit", n_jobs=2):
            joblib.Parallel()(joblib.delayed(poolwork.sleep_for_ever)(began) for _ in range(9))
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""


def test_ctrl_c_ends_the_workers_and_is_raised() -> None:
    name = f"joblib-{os.getpid()}"
    began = mpkit.Signal(name=name)
    program = python(INTERRUPTED, name)
    try:
        assert began.wait(PATIENCE)
        program.send_signal(signal.SIGINT)
        said, _ = program.communicate(timeout=PATIENCE)
    finally:
        program.kill()
    assert said == "interrupted\n"
    assert program.returncode == 0
