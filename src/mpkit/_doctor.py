"""What this machine gives, and whether mpkit works on it: ``python -m mpkit doctor``."""

from __future__ import annotations

import fcntl
import importlib.metadata
import multiprocessing
import os
import platform
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import mpkit
from mpkit import _runtime, _selftest
from mpkit._errors import RuntimeDirectoryError
from mpkit._platform import PORTABLE, cores, descriptors, files, memory, processes, threads

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mpkit._selftest import Trial

#: What else can be installed, and what for. The extras have these names but for tqdm's.
EXTRAS: Final = {
    "cloudpickle": "lambdas and closures travel",
    "msgspec": "channels that check what arrives",
    "tqdm": "bars of progress",
    "threadpoolctl": "forked workers heed threads_per_worker, too",
    "distributed": "pools on Dask",
    "joblib": "a backend of it, and so of scikit-learn's n_jobs",
    "numpy": "no extra: its arrays travel as shared memory",
}


@dataclass(frozen=True)
class Cores:
    """How many cores there are, and what a pool makes of that if it is not told."""

    machine: int
    affinity: int
    #: How many cores' time the control groups leave; None is no limit.
    quota: float | None
    #: What the environment asks for, if it does.
    environment: str | None
    #: None if that makes no sense; see ``problem``.
    workers: int | None
    threads_per_worker: int | None
    #: The variables that libraries look at and that are set.
    thread_variables: dict[str, str]
    problem: str | None


@dataclass(frozen=True)
class Directory:
    """Where processes meet."""

    path: str
    exists: bool
    file_system: str
    in_memory: bool
    problem: str | None


@dataclass(frozen=True)
class Helper:
    """Something that the system may have, and what it is good for."""

    name: str
    there: bool
    purpose: str


@dataclass(frozen=True)
class Extra:
    """A package that need not be there."""

    name: str
    version: str | None
    purpose: str


@dataclass(frozen=True)
class Report:
    """All that `examine` has found."""

    mpkit: str
    python: str
    executable: str
    system: str
    start_methods: list[str]
    default_start_method: str
    cores: Cores
    directory: Directory
    helpers: list[Helper]
    extras: list[Extra]
    trials: list[Trial]

    @property
    def problems(self) -> list[str]:
        """What is not well, in words."""
        said = [text for text in (self.cores.problem, self.directory.problem) if text]
        return said + [
            f"{trial.part} under {trial.start_method}: {trial.problem}"
            for trial in self.trials
            if trial.problem
        ]


def examine() -> Report:
    """Look at everything, and try it."""
    methods = multiprocessing.get_all_start_methods()
    return Report(
        mpkit.__version__,
        f"{platform.python_implementation()} {platform.python_version()}",
        sys.executable,
        f"{platform.system()} {platform.release()} ({platform.machine()})",
        methods,
        multiprocessing.get_start_method(allow_none=True) or methods[0],
        _cores(),
        _directory(),
        _helpers(),
        [Extra(name, _version(name), purpose) for name, purpose in EXTRAS.items()],
        _selftest.run(methods),
    )


def _cores() -> Cores:
    workers = problem = None
    try:
        workers = cores.default_workers()
    except ValueError as error:
        problem = str(error)
    return Cores(
        os.cpu_count() or 1,
        cores.affinity(),
        cores.cpu_quota(),
        os.environ.get(cores.VARIABLE) or None,
        workers,
        None if workers is None else threads.share(workers),
        {name: said for name in threads.VARIABLES if (said := os.environ.get(name))},
        problem,
    )


def _directory() -> Directory:
    """Look at the runtime directory, which is not made for that."""
    path = _runtime.base_directory()
    exists = os.path.lexists(path)
    there = path
    while not os.path.lexists(there):
        there = os.path.dirname(there)
    problem = None
    try:
        if exists:
            _runtime.check_owner(path)
        _runtime.check_file_system(there)
        if not os.access(there, os.W_OK | os.X_OK):
            raise RuntimeDirectoryError(path, f"cannot be used ({there} is not writable)")
    except RuntimeDirectoryError as error:
        problem = str(error)
    kind = files.file_system(there)
    return Directory(path, exists, kind, kind in ("tmpfs", "ramfs"), problem)


def _helpers() -> list[Helper]:
    found = [
        ("SOCK_SEQPACKET", descriptors.HAS_PACKETS, "packets keep apart, else they are framed"),
        ("pidfd", _has_pidfd(), "a death wakes who waits, else one looks again"),
        ("F_SETSIG", _kills_orphans(), "the kernel ends orphans, else their own threads do"),
        ("memfd", _has_memfd(), "large messages in memory, else in unlinked files"),
        ("/proc/locks", files.FINDS_DELETED, "names outlive the deletion of their files"),
        ("/proc/self/statm", memory.HAS_PROC, "memory_hard_limit, else it is refused"),
        ("/proc/.../children", processes.children() is not None, "a failed fork moves nothing"),
        ("waitid", hasattr(os, "waitid"), "errors say how a peer ended"),
    ]
    return [Helper(*facts) for facts in found]


def _has_pidfd() -> bool:
    try:
        fd = descriptors.open_pidfd(os.getpid())
    except OSError:
        return False
    if fd is None:
        return False
    os.close(fd)
    return True


def _has_memfd() -> bool:
    if not memory.HAS_MEMFD:
        return False
    try:
        fd = memory.anonymous_file(1)
    except OSError:  # a sandbox forbids it
        return False
    try:
        os.write(fd, b"x")  # or it has no memory yet
        memory.seal(fd)
        return memory.is_sound(fd)
    except OSError:
        return False
    finally:
        os.close(fd)


def _kills_orphans() -> bool:
    """Tell whether the kernel takes the order to kill this process, and take that back."""
    reader, writer = os.pipe()
    try:
        fd = os.open(f"/proc/self/fd/{reader}", os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        fd = -1
    try:
        return fd >= 0 and descriptors.die_when_hung_up(fd)
    except OSError:
        return False
    finally:
        if fd >= 0:
            fcntl.fcntl(fd, fcntl.F_SETFL, os.O_NONBLOCK)  # it is to hear of no hang-up
            os.close(fd)
        os.close(reader)
        os.close(writer)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def lines(report: Report) -> Iterator[str]:
    """Say in plain words what was found."""
    yield f"mpkit {report.mpkit} on {report.python}, {report.system}"
    yield ""
    others = [name for name in report.start_methods if name != report.default_start_method]
    yield f"start methods: {', '.join([f'{report.default_start_method} (the default)', *others])}"
    yield ""
    yield "cores"
    yield from _lines_of_cores(report.cores)
    yield ""
    yield "runtime directory"
    yield f"  {_in_words(report.directory)}"
    yield ""
    yield "what the system has" + (", of which MPKIT_PORTABLE=1 uses little" if PORTABLE else "")
    for helper in report.helpers:
        yield f"  {'yes' if helper.there else 'no ':<4} {helper.name:<19} {helper.purpose}"
    yield ""
    yield "extras"
    for extra in report.extras:
        yield f"  {extra.name:<14} {extra.version or 'not installed':<14} {extra.purpose}"
    yield ""
    yield "self-test"
    for method in report.start_methods:
        yield f"  {method:<11} {_verdict([t for t in report.trials if t.start_method == method])}"
    yield ""
    if not report.problems:
        yield "All is well."
    for problem in report.problems:
        yield f"PROBLEM  {problem}"


def _lines_of_cores(found: Cores) -> Iterator[str]:
    quota = "none" if found.quota is None else f"the time of {found.quota:g}"
    rows = {
        "of the machine": str(found.machine),
        "affinity": str(found.affinity),
        "CPU quota": quota,
        cores.VARIABLE: found.environment or "not set",
    }
    rows |= dict(found.thread_variables)
    for name, value in rows.items():
        yield f"  {name:<22} {value}"
    if found.workers is not None:
        each = f"{found.threads_per_worker} thread{'s' if found.threads_per_worker != 1 else ''}"
        own = " where your variables do not say otherwise" if found.thread_variables else ""
        yield f"  so a pool has          {found.workers} workers by default, {each} each{own}"


def _in_words(found: Directory) -> str:
    on = f" on {found.file_system}" if found.file_system else ""
    on += " (in memory)" if found.in_memory else ""
    state = "cannot be used" if found.problem else "can be used"
    return f"{found.path}{on}: {state}{'' if found.exists else ', is made when it is needed'}"


def _verdict(trials: list[Trial]) -> str:
    failed = [trial.part for trial in trials if trial.problem]
    if failed:
        return f"FAILED: {', '.join(failed)}"
    return f"{', '.join(t.part for t in trials)} work ({sum(t.seconds for t in trials):.1f} s)"
