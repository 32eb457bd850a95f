"""The runtime directory: what it may be, and what is said of one that cannot be used."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mpkit import _platform, _runtime
from mpkit._errors import RuntimeDirectoryError
from mpkit._limit import Semaphore, limit
from mpkit._platform import files
from mpkit._signal import Signal
from tests.support import PATIENCE

ROOT = os.getuid() == 0
NOBODY = 65534

needs_root = pytest.mark.skipif(not ROOT, reason="only root can give a directory away")

#: What a program says of each way to use the directory: done, or the error. A bare
#: OSError, or anything else, ends it badly.
HEAD = """
import errno, os, resource, shutil, signal, sys
import mpkit
from mpkit._limit import Semaphore, limit
from mpkit._signal import Signal

home = os.environ["MPKIT_RUNTIME_DIR"]

def inline():
    return limit(1)

def attempt(use):
    try:
        use()
    except mpkit.RuntimeDirectoryError as error:
        assert isinstance(error, OSError)
        print("refused:", error)
    else:
        print("done")
"""

#: All that needs the directory.
TRY = """
attempt(lambda: Semaphore(1))
attempt(lambda: Semaphore(1, name="some").acquire(block=False))
attempt(lambda: inline().acquire(block=False))
attempt(Signal)
attempt(lambda: Signal(name="some"))
"""


def run(code: str, home: Path | str, *, uid: int | None = None, **options: Any) -> list[str]:
    """Run a program with ``home`` as its runtime directory; return the lines that it printed.

    It must neither hang nor be killed.
    """
    if uid is not None:
        # Not by an option of subprocess: that user may not be able to enter the interpreter's home.
        code = f"os.setgroups([]); os.setgid({uid}); os.setuid({uid})\n{code}"
    ran = subprocess.run(
        [sys.executable, "-c", HEAD + code],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "MPKIT_RUNTIME_DIR": str(home),
        },
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        **options,
    )
    assert ran.returncode == 0, ran.stderr
    assert "Exception ignored" not in ran.stderr
    return ran.stdout.splitlines()


def assert_refused(lines: list[str], home: Path | str, why: str, count: int = 5) -> None:
    assert len(lines) == count
    for line in lines:
        assert line.startswith(f"refused: mpkit's runtime directory {home} ")
        assert why in line
        assert line.endswith("set MPKIT_RUNTIME_DIR to a local directory that only you can enter")


def open_to_the_path(path: Path) -> None:
    """Let every user pass through the directories above ``path``, up to /tmp."""
    for parent in path.parents:
        if parent.stat().st_uid == os.getuid() and len(parent.parts) > 2:
            parent.chmod(parent.stat().st_mode | 0o011)


def test_it_is_made_for_its_user_only_and_can_be_used(tmp_path: Path) -> None:
    home = tmp_path / "a" / "b"
    assert run(TRY, home) == ["done"] * 5
    assert home.stat().st_mode & 0o777 == 0o700
    assert list(home.iterdir()) == []


@needs_root
def test_one_that_belongs_to_somebody_else_is_refused(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(0o700)
    os.chown(home, NOBODY, NOBODY)
    assert_refused(run(TRY, home), home, f"belongs to user {NOBODY}, not to you")
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("mode", [0o755, 0o777, 0o1777, 0o710, 0o701])
def test_one_that_others_can_enter_is_refused(tmp_path: Path, mode: int) -> None:
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(mode)
    assert_refused(run(TRY, home), home, f"is open to others (mode {mode:o}, not 700)")
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("there", [True, False], ids=["there", "dangling"])
def test_a_link_is_refused_wherever_it_leads(tmp_path: Path, there: bool) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    if there:
        elsewhere.mkdir(0o700)
    home.symlink_to(elsewhere)
    assert_refused(run(TRY, home), home, "is a symbolic link")
    assert elsewhere.exists() is there


@pytest.mark.parametrize("below", ["", "/deeper"])
def test_a_file_is_refused(tmp_path: Path, below: str) -> None:
    (tmp_path / "home").touch()
    home = f"{tmp_path}/home{below}"
    assert_refused(run(TRY, home), home, "ot a directory")


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="there is no /proc")
@pytest.mark.parametrize("home", ["/proc/mpkit", "/proc/self/fd/mpkit", "/sys/mpkit"])
def test_one_that_cannot_be_made_is_refused(home: str) -> None:
    assert_refused(run(TRY, home), home, "cannot be made (")


def test_a_path_that_is_too_long_is_refused(tmp_path: Path) -> None:
    home = f"{tmp_path}/{'x' * 300}"
    assert_refused(run(TRY, home), home, "cannot be made (File name too long)")


def test_one_that_can_only_be_read_is_refused(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(0o700)
    if ROOT:  # to whom modes mean nothing
        os.chown(home, NOBODY, NOBODY)
        open_to_the_path(home)
    home.chmod(0o500)
    assert_refused(run(TRY, home, uid=NOBODY if ROOT else None), home, "cannot be used (")


def test_one_that_can_be_entered_but_not_read_works(tmp_path: Path) -> None:
    """It cannot be swept; but that is no reason not to use it."""
    home = tmp_path / "home"
    home.mkdir(0o700)
    if ROOT:
        os.chown(home, NOBODY, NOBODY)
        open_to_the_path(home)
    home.chmod(0o300)
    assert run(TRY, home, uid=NOBODY if ROOT else None) == ["done"] * 5


FULL = """
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
attempt(lambda: Semaphore(1))
attempt(lambda: Semaphore(1, name="some").acquire(block=False))
attempt(lambda: inline().acquire(block=False))
"""


def test_one_that_is_full_is_refused(tmp_path: Path) -> None:
    """A write that cannot be done, as on a full disk; a signal needs no room."""
    assert_refused(run(FULL, tmp_path / "home"), tmp_path / "home", "cannot be used (", 3)
    assert list((tmp_path / "home").iterdir()) == []


FULL_LATER = """
if len(sys.argv) > 1:
    mpkit._queue.MAPPED = 0  # as behind a long queue
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
semaphore = Semaphore(1)
copy = Semaphore(1)
semaphore.acquire()
resource.setrlimit(resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
attempt(lambda: semaphore.acquire(timeout=0.01))
semaphore.release()
attempt(lambda: semaphore.acquire(timeout=0.01))  # nobody has to wait
semaphore.release()
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
semaphore.acquire()
attempt(lambda: semaphore.acquire(timeout=0.01))
assert len(semaphore._slots.queue.entries()) == 0
"""


def test_waiting_says_so_when_the_disk_became_full(tmp_path: Path) -> None:
    """A place in a long queue needs room; all else does not, once the file is there."""
    assert run(FULL_LATER, tmp_path / "home") == ["done"] * 3
    lines = run("import mpkit._queue; sys.argv.append('long')\n" + FULL_LATER, tmp_path / "home")
    assert_refused(lines[:1], tmp_path / "home", "cannot be used (", 1)
    assert lines[1:] == ["done", "done"]


VANISHED = """
kept, named, signal_kept = Semaphore(1), Semaphore(1, name="some"), Signal()
inline().acquire()
shutil.rmtree(home)
if len(sys.argv) > 1:
    open(home, "w").close()
attempt(lambda: kept.acquire(block=False))
attempt(lambda: named.acquire(timeout=0.01))
attempt(lambda: kept.acquire(timeout=0.01))  # has to wait: makes a bell
attempt(inline)
attempt(signal_kept.set)
attempt(Signal)
attempt(lambda: Semaphore(1))
attempt(lambda: Semaphore(1, name="other"))
"""


def test_one_that_vanished_is_made_anew_and_one_that_became_a_file_is_refused(
    tmp_path: Path,
) -> None:
    home = tmp_path / "home"
    assert run(VANISHED, home) == ["done"] * 8
    shutil.rmtree(home)
    replaced = "sys.argv.append('replaced')\n" + VANISHED
    lines = run(replaced, home)
    assert len(lines) == 8
    # What is open goes on; all that needs the path says what is wrong with it. (Where nobody
    # can find a deleted file, each who takes a first slot goes to the path.)
    going_on = {0, 1, 3, 4} if files.FINDS_DELETED else {3, 4}
    for number, line in enumerate(lines):
        if number in going_on:
            assert line == "done"
        else:
            assert_refused([line], home, "", 1)


FORKED = """
semaphore = Semaphore(1)
shutil.rmtree(home)
pid = os.fork()
if pid == 0:
    attempt(lambda: Semaphore(1))
    sys.stdout.flush()
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
"""


def test_a_child_forked_after_it_vanished_can_use_it(tmp_path: Path) -> None:
    assert run(FORKED, tmp_path / "home") == ["done"]


RELATIVE = """
import multiprocessing
semaphore = Semaphore(1)
path = semaphore._opened().path
os.chdir("/")
assert Semaphore(1)._opened().path.rpartition("/")[0] == path.rpartition("/")[0]
process = multiprocessing.get_context("spawn").Process(target=os.chdir, args=("/",))
process.start(), process.join()
assert process.exitcode == 0
print(path)
"""


def test_a_relative_path_is_the_same_after_a_change_of_directory(tmp_path: Path) -> None:
    [path] = run(RELATIVE, "home", cwd=tmp_path)
    assert path.startswith(f"{tmp_path}/home/")


def test_what_is_not_ours_is_never_swept(tmp_path: Path) -> None:
    """Somebody may set MPKIT_RUNTIME_DIR to his home, whose folders nobody has locked."""
    home = tmp_path / "home"
    theirs = [
        home / "documents" / "letter",
        home / "named" / "names.txt",
        home / "named" / "deep" / "sem-like",
        home / ("0" * 20 + "-backup") / "sem-1",
        home / "file",
    ]
    ours = [
        home / ("0" * 20) / "sem-1",
        home / ("1" * 20) / "sig-1",
        home / ("2" * 20) / "queue-sem-1" / "1-0",
        home / "named" / "sem-killed",
    ]
    home.mkdir(0o700)
    for path in (*theirs, *ours):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("dear diary")
    run(TRY, home)
    assert all(path.exists() for path in theirs)
    assert not any(path.exists() for path in ours)
    assert sorted(path.name for path in home.iterdir()) == sorted(
        {path.relative_to(home).parts[0] for path in theirs}
    )


@needs_root
def test_a_folder_that_cannot_be_swept_is_left(tmp_path: Path) -> None:
    home = tmp_path / "home"
    stubborn = home / ("0" * 20) / "queue-sem-1"
    stubborn.mkdir(parents=True)
    (stubborn / "1-0").touch()
    home.chmod(0o700)
    os.chown(home, NOBODY, NOBODY)
    open_to_the_path(home)
    assert run(TRY, home, uid=NOBODY) == ["done"] * 5
    assert stubborn.exists()


NAMES = [
    "",
    ".",
    "..",
    "a/b",
    "/etc",
    "x" * 201,
    "ä",
    "a\0b",
    "a\nb",
    "a\n",
    " ",
    "a b",
    "\udcff",
    "~",
]


def by_limit(name: Any) -> object:
    return limit(1, name=name)


def by_semaphore(name: Any) -> object:
    return Semaphore(1, name=name)


def by_signal(name: Any) -> object:
    return Signal(name=name)


MAKERS: list[Callable[[Any], object]] = [by_limit, by_semaphore, by_signal]


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name)[:12])
def test_names_that_could_be_something_else_are_refused(
    make: Callable[[Any], object], name: str
) -> None:
    with pytest.raises(ValueError, match="a name is 1 to 200 of the characters"):
        make(name)


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("name", [b"a", 1, 1.5, True, ("a",), object()], ids=repr)
def test_names_that_are_no_str_are_refused(make: Callable[[Any], object], name: object) -> None:
    with pytest.raises(TypeError, match="a name is a str, not"):
        make(name)


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("name", ["x" * 200, "...", "a.b", "-", "+", "db@host:1", "_"])
def test_all_other_names_can_be_used(make: Callable[[Any], object], name: str) -> None:
    made = make(name)
    assert made is not None


# file systems

MOUNTS = r"""22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 27 0:26 / /tmp rw,nosuid master:7 shared:2 - tmpfs tmpfs rw
31 27 0:40 /export /home rw,relatime shared:1 - nfs4 server:/export rw,vers=4.2
32 27 0:41 / /mnt/with\040space\134 rw - cifs //server/share rw
33 27 0:42 / /mnt/a rw - btrfs /dev/sdb rw
34 33 0:43 / /mnt/a/- rw - fuse.sshfs me@there: rw
35 27 0:44 / /mnt/a rw shared:3 propagate_from:2 - 9p share rw
not a mount at all
36 27 0:45 / /mnt/b rw -
"""


@pytest.mark.parametrize(
    ("number", "path", "kind"),
    [
        ("254:0", "/", "ext4"),
        ("0:26", "/tmp/x", "tmpfs"),
        ("0:40", "/wherever", "nfs4"),  # the number says it all
        ("0:43", "/", "fuse.sshfs"),
        ("9:9", "/", "ext4"),
        ("9:9", "/home", "nfs4"),
        ("9:9", "/home/me", "nfs4"),
        ("9:9", "/homeless", "ext4"),
        ("9:9", "/mnt/with space\\/x", "cifs"),
        ("9:9", "/mnt/a/x", "9p"),  # which was mounted over the other one
        ("9:9", "/mnt/a/-/x", "fuse.sshfs"),
        ("9:9", "/mnt/b", "ext4"),
    ],
)
def test_the_file_system_of_a_path_is_found(number: str, path: str, kind: str) -> None:
    assert files.find_mount(MOUNTS, number, path) == kind


def test_no_file_system_is_found_where_none_is_told() -> None:
    assert files.find_mount("", "9:9", "/") == ""


@pytest.mark.skipif(not _platform.LINUX, reason="nothing tells of mounts")
def test_the_file_systems_of_this_machine_are_found(tmp_path: Path) -> None:
    assert files.file_system("/proc") == "proc"
    assert files.file_system(str(tmp_path)) not in ("", "proc")
    assert files.file_system(f"{tmp_path}/not/there") == ""


def test_elsewhere_no_file_system_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LINUX", False)
    assert files.file_system("/proc") == ""


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "9p", "fuse.sshfs", "lustre"])
def test_a_network_file_system_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    monkeypatch.setattr(files, "file_system", lambda path: kind)
    with pytest.raises(RuntimeDirectoryError) as caught:
        _runtime.Home("named", str(tmp_path / "home"))
    assert f"{tmp_path}/home is on a network file system ({kind})" in str(caught.value)
    assert "do not tell who holds them" in str(caught.value)
    assert "set MPKIT_RUNTIME_DIR" in str(caught.value)


@pytest.mark.parametrize("kind", ["", "ext4", "tmpfs", "overlay", "btrfs", "fuse.unheard-of"])
def test_all_others_can_be_used_and_are_asked_for_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(files, "file_system", lambda path: asked.append(path) or kind)
    home = _runtime.Home("named", str(tmp_path / "home"))
    home.restore()
    shutil.rmtree(home.path)
    home.restore()
    home.leave()
    home._exit.cancel()
    assert asked == [str(tmp_path / "home")]
