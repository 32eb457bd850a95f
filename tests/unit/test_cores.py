"""How many workers a pool has by default: affinity, quotas of control groups, the environment."""

from __future__ import annotations

import math
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mpkit
from mpkit._platform import LINUX, cores

pytestmark = pytest.mark.skipif(not LINUX, reason="control groups are Linux")

V2 = "36 30 0:29 {root} {mount} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "36 30 0:29 {root} {mount} rw,nosuid shared:4 - cgroup cgroup rw,cpu,cpuacct\n"
OTHERS = (
    "21 30 0:19 / /sys rw - sysfs sysfs rw\n"
    "35 30 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    "garbage\n"
)


def system(root: Path, groups: str, mounts: str) -> None:
    """Make a system in which a process is in these groups."""
    proc = root / "proc" / "self"
    proc.mkdir(parents=True)
    (proc / "cgroup").write_text(groups)
    (proc / "mountinfo").write_text(OTHERS + mounts)


def limit(root: Path, folder: str, *, v1: bool, quota: int | None, period: int = 100_000) -> None:
    """Give a group a limit, in microseconds."""
    path = root / folder.lstrip("/")
    path.mkdir(parents=True, exist_ok=True)
    if v1:
        (path / "cpu.cfs_quota_us").write_text(f"{-1 if quota is None else quota}\n")
        (path / "cpu.cfs_period_us").write_text(f"{period}\n")
    else:
        (path / "cpu.max").write_text(f"{'max' if quota is None else quota} {period}\n")


def test_a_quota_of_the_groups_of_version_2(tmp_path: Path) -> None:
    system(tmp_path, "0::/a/b\n", V2.format(root="/", mount="/sys/fs/cgroup"))
    assert cores.cpu_quota(str(tmp_path)) is None  # there is nothing to be read
    limit(tmp_path, "/sys/fs/cgroup/a/b", v1=False, quota=None)
    assert cores.cpu_quota(str(tmp_path)) is None
    limit(tmp_path, "/sys/fs/cgroup/a/b", v1=False, quota=150_000)
    assert cores.cpu_quota(str(tmp_path)) == 1.5
    limit(tmp_path, "/sys/fs/cgroup", v1=False, quota=50_000, period=200_000)
    assert cores.cpu_quota(str(tmp_path)) == 0.25


def test_a_quota_of_the_groups_of_version_1(tmp_path: Path) -> None:
    mounts = V1.format(root="/", mount="/sys/fs/cgroup/cpu,cpuacct")
    system(tmp_path, "5:memory:/x\n4:cpu,cpuacct:/a\n0::/\n", mounts)
    limit(tmp_path, "/sys/fs/cgroup/cpu,cpuacct/x", v1=True, quota=100_000)  # not ours
    limit(tmp_path, "/sys/fs/cgroup/cpu,cpuacct/a", v1=True, quota=None)
    assert cores.cpu_quota(str(tmp_path)) is None
    limit(tmp_path, "/sys/fs/cgroup/cpu,cpuacct", v1=True, quota=300_000)
    assert cores.cpu_quota(str(tmp_path)) == 3


@pytest.mark.parametrize("path", ["/docker/12\\x2d3/inner", "/", "/../other"])
def test_a_container_sees_its_own_group_and_no_other(tmp_path: Path, path: str) -> None:
    """Which is mounted alone; whether its names are those of outside depends."""
    mounts = V2.format(root="/docker/12\\134x2d3", mount="/sys/fs/my\\040groups")
    system(tmp_path, f"0::{path}\n", mounts)
    limit(tmp_path, "/sys/fs/my groups", v1=False, quota=200_000)
    limit(tmp_path, "/sys/fs/my groups/docker/12\\x2d3/inner", v1=False, quota=1_000)
    assert cores.cpu_quota(str(tmp_path)) == 2
    if path.endswith("inner"):
        limit(tmp_path, "/sys/fs/my groups/inner", v1=False, quota=150_000)
        assert cores.cpu_quota(str(tmp_path)) == 1.5


@pytest.mark.parametrize("text", ["", "max", "many 100000", "100000 0", "0 100000", "-1 100000"])
def test_what_makes_no_sense_is_no_limit(tmp_path: Path, text: str) -> None:
    system(tmp_path, "0::/a\nodd\n", V2.format(root="/", mount="/g"))
    (tmp_path / "g" / "a").mkdir(parents=True)
    (tmp_path / "g" / "a" / "cpu.max").write_text(text)
    assert cores.cpu_quota(str(tmp_path)) is None


@given(
    quotas=st.lists(st.none() | st.integers(1_000, 10_000_000), min_size=1, max_size=6),
    v1=st.booleans(),
)
@settings(deadline=None)
def test_the_least_of_all_groups_above_holds(quotas: list[int | None], v1: bool) -> None:
    with TemporaryDirectory() as folder:
        root = Path(folder)
        names = [f"g{number}" for number in range(len(quotas) - 1)]
        path = "/" + "/".join(names)
        mount = (V1 if v1 else V2).format(root="/", mount="/g")
        system(root, f"3:cpu:{path}\n" if v1 else f"0::{path}\n", mount)
        for depth, quota in enumerate(quotas):
            limit(root, "/".join(["/g", *names[:depth]]), v1=v1, quota=quota)
        given_ones = [quota / 100_000 for quota in quotas if quota is not None]
        assert cores.cpu_quota(folder) == min(given_ones, default=None)


@pytest.mark.parametrize(
    ("affinity", "quota", "usable"),
    [(4, None, 4), (4, 8.0, 4), (4, 1.5, 2), (4, 0.1, 1), (1, 3.0, 1), (64, 63.01, 64)],
)
def test_a_part_of_a_core_counts_as_one(
    monkeypatch: pytest.MonkeyPatch, affinity: int, quota: float | None, usable: int
) -> None:
    monkeypatch.setattr(cores, "affinity", lambda: affinity)
    monkeypatch.setattr(cores, "cpu_quota", lambda: quota)
    assert cores.usable_cores() == usable
    assert quota is None or usable == max(1, min(affinity, math.ceil(quota)))


def test_the_affinity_of_this_process_counts() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert cores.affinity() == 1
        assert cores.usable_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert cores.affinity() == len(allowed)


@pytest.mark.skipif(sys.version_info < (3, 13), reason="Python has no such setting")
def test_what_python_was_told_stands_for_the_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "process_cpu_count", lambda: 40)
    assert cores.affinity() == 40


def test_the_environment_says_how_many_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPKIT_WORKERS", " 3 ")
    with mpkit.TaskPool() as pool:
        assert len(pool.stats().workers) == 3
    with mpkit.TaskPool(1) as pool:  # what is given wins
        assert len(pool.stats().workers) == 1
    monkeypatch.setenv("MPKIT_WORKERS", "")
    assert cores.default_workers() == cores.usable_cores()


@pytest.mark.parametrize("said", ["0", "-1", "two", "2.5", "1_0", "٣", "1e3", "all"])
def test_what_makes_no_sense_in_the_environment_fails_where_a_pool_is_made(
    monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    monkeypatch.setenv("MPKIT_WORKERS", said)
    with pytest.raises(ValueError, match=f"MPKIT_WORKERS .* not {said!r}: set it to one"):
        mpkit.TaskPool()
    with mpkit.TaskPool(1) as pool:  # and nowhere else
        assert pool.apply(abs, (-1,)) == 1


def test_the_environment_says_nothing_to_who_runs_on_an_executor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MPKIT_WORKERS", "nonsense")
    with ThreadPoolExecutor(1) as threads, mpkit.TaskPool(on=threads) as pool:
        assert pool.apply(abs, (-1,)) == 1
