"""The runtime directory: where processes that share a thing find it.

``/tmp/mpkit-<uid>/`` (or ``MPKIT_RUNTIME_DIR``) has a folder for each *family* (a
root process and all that it started through multiprocessing) and one, ``named``, for
what all of this user's programs share by name.

Every process that uses a folder holds a shared `flock` on it, which the kernel drops
with the process. So whoever gets the *exclusive* lock knows that nobody lives there
any more, and may remove it: the last one to leave does, and what a killed family
leaves is swept by the next one to arrive. Having locked a folder, one looks whether
its path still leads there; if not, it was just swept, and one starts again.

Nothing in a folder is needed after its last user is gone.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import multiprocessing
import os
import re
import stat
from typing import TYPE_CHECKING, Final

from mpkit import _fork
from mpkit._errors import RuntimeDirectoryError
from mpkit._platform import files, mains, stdlib

if TYPE_CHECKING:
    from collections.abc import Generator


def base_directory() -> str:
    """Return the path of this user's runtime directory.

    Not below XDG_RUNTIME_DIR or TMPDIR: two programs of one user would then miss each
    other whenever their environments differ, as a cron job's and a login's do.
    """
    chosen = os.environ.get("MPKIT_RUNTIME_DIR")
    if not chosen:
        return f"/tmp/mpkit-{os.getuid()}"
    # One directory for the whole family, whatever directory each of its processes is in.
    return os.path.normpath(os.path.join(mains.start_directory(), chosen))


def family_id() -> str:
    """Return what the processes of this program have in common, and no others.

    The authentication key is 32 random bytes that multiprocessing makes in the root
    process and hands to every descendant under every start method.
    """
    key = bytes(multiprocessing.current_process().authkey)
    return hashlib.blake2b(key, digest_size=10, person=b"mpkit family").hexdigest()


class Home:
    """A folder of the runtime directory, held open for as long as this process lives."""

    def __init__(self, name: str, base: str) -> None:
        self.base = base
        self.path = os.path.join(self.base, name)
        with _fork.guard:
            _make_base(self.base)
            check_file_system(self.base)
            self._fd = self._enter()
            _fork.know(self)
        self._exit = stdlib.call_at_exit(self.leave, -100)

    def _enter(self) -> int:
        while True:
            _make_base(self.base)
            try:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(self.path, 0o700)
                fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            except FileNotFoundError:  # somebody is sweeping
                continue
            except OSError as error:
                raise RuntimeDirectoryError(self.base, f"cannot be used ({error})") from error
            try:
                fcntl.flock(fd, fcntl.LOCK_SH)  # waits for a sweeper at most
            except OSError as error:  # some file systems have no locks
                os.close(fd)
                raise RuntimeDirectoryError(self.base, f"cannot be used ({error})") from error
            if leads_to(self.path, fd):
                return fd
            os.close(fd)

    def restore(self) -> None:
        """Make the folder anew if it was deleted underneath."""
        with _fork.guard:
            if self._fd >= 0 and not leads_to(self.path, self._fd):
                deleted, self._fd = self._fd, self._enter()
                os.close(deleted)

    @property
    def left(self) -> bool:
        """Whether this process uses it no more."""
        return self._fd < 0

    def leave(self) -> None:
        """Remove the folder if this was the last process to use it."""
        with _fork.guard:
            if self._fd >= 0:
                _remove_if_deserted(self.path, self._fd)
                os.close(self._fd)
                self._fd = -1
        if "MPKIT_RUNTIME_DIR" not in os.environ:  # that one is not ours to remove
            with contextlib.suppress(OSError):  # not empty: others live there
                os.rmdir(self.base)

    def _before_fork(self) -> None:
        """Nothing to decide."""

    def _after_fork_in_parent(self) -> None:
        """Nothing to let go of."""

    def _after_fork_in_child(self) -> None:
        # The inherited descriptor shares its lock with the parent's, which would drop
        # (or upgrade) it for both. Take our own first, so that there is no gap.
        if self._fd >= 0:
            inherited, self._fd = self._fd, self._enter()
            os.close(inherited)


_homes: dict[str, Home] = {}


def family_home() -> Home:
    """Return the folder of this program's processes."""
    return _home(family_id())


def named_home() -> Home:
    """Return the folder of what all programs of this user share by name."""
    return _home("named")


def hold(folder: str) -> None:
    """Keep ``folder`` from being swept for as long as this process lives.

    For what was unpickled: its path leads to the folder of the family that made it,
    which need not be ours.
    """
    base, name = os.path.split(folder)
    _home(name, base)


def restore(folder: str) -> None:
    """Make ``folder`` anew, which this process uses: it was deleted underneath."""
    hold(folder)
    _homes[folder].restore()


@contextlib.contextmanager
def alone(folder: str) -> Generator[None]:
    """Let no other process or thread be in here with a folder of the same directory.

    For a few system calls. Who is killed inside leaves, as with every `flock`.
    """
    base = os.path.dirname(folder)
    with _fork.guard:  # a child born in between would share the lock, and keep it
        while True:
            restore(folder)
            try:
                fd = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            except FileNotFoundError:  # deleted again
                continue
            except PermissionError:  # who may enter it, but not read it, cannot lock it
                yield
                return
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                if leads_to(base, fd) and os.path.isdir(folder):
                    yield
                    return
            finally:
                os.close(fd)


def unusable(path: str, error: OSError) -> RuntimeDirectoryError:
    """Say that ``error`` happened to a file of a folder."""
    base = os.path.dirname(os.path.dirname(path))
    return RuntimeDirectoryError(base, f"cannot be used ({error})")


def _home(name: str, base: str | None = None) -> Home:
    base = base or base_directory()
    path = os.path.join(base, name)
    home = _homes.get(path)
    if home is None or home.left:
        with _fork.guard:
            home = _homes.get(path)
            if home is None or home.left:
                home = _homes[path] = Home(name, base)
                sweep(base)
    return home


def folders(base: str) -> list[os.DirEntry[str]]:
    """Return the folders of families, living or not, and that of all named things."""
    return [entry for entry in _entries(base) if _FOLDER.fullmatch(entry.name)]


def sweep(base: str) -> None:
    """Remove the folders of families that no longer live.

    None but those, and nothing in them but what we make: MPKIT_RUNTIME_DIR may have been
    set to somebody's home directory.
    """
    for entry in folders(base):
        try:
            fd = os.open(entry.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:  # not a folder, or swept by somebody else
            continue
        try:
            _remove_if_deserted(entry.path, fd)
        finally:
            os.close(fd)


#: What the folder of a family is called, and that of all named things.
_FOLDER: Final = re.compile("[0-9a-f]{20}|named")
#: How the names of what lies in them begin: a signal, a semaphore, the bells of one, and
#: who is there.
_OURS: Final = ("sig-", "sem-", "queue-sem-", "here-")


def _remove_if_deserted(path: str, fd: int) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # in use, as a rule
        return
    if leads_to(path, fd):
        for entry in _entries(path):
            if entry.name.startswith(_OURS):
                _remove(entry)
        with contextlib.suppress(OSError):
            os.rmdir(path)


def _remove(entry: os.DirEntry[str]) -> None:
    """Remove a file, or a folder and all in it; not what vanishes, or what we may not."""
    with contextlib.suppress(OSError):
        if entry.is_dir(follow_symlinks=False):
            for inner in _entries(entry.path):
                _remove(inner)
            os.rmdir(entry.path)
        else:
            os.unlink(entry.path)


def _entries(path: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            return list(entries)
    except OSError:  # it vanished, or we may not read it
        return []


def leads_to(path: str, fd: int) -> bool:
    """Tell whether ``path`` is what ``fd`` is open on; also False if that cannot be known."""
    try:
        there = os.stat(path, follow_symlinks=False)
    except OSError:
        return False
    here = os.fstat(fd)
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)


def _make_base(path: str) -> None:
    try:
        os.makedirs(path, 0o700)
    except FileExistsError:
        pass
    except OSError as error:
        raise RuntimeDirectoryError(path, f"cannot be made ({error.strerror})") from error
    check_owner(path)


def check_owner(path: str) -> None:
    """Raise RuntimeDirectoryError if what is there is nothing that we may use."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:  # the last user of another folder just left
        return
    except OSError as error:
        raise RuntimeDirectoryError(path, f"cannot be used ({error.strerror})") from error
    if stat.S_ISLNK(found.st_mode):
        raise RuntimeDirectoryError(path, "is a symbolic link, not a directory")
    if not stat.S_ISDIR(found.st_mode):
        raise RuntimeDirectoryError(path, "is not a directory")
    if found.st_uid != os.geteuid():
        raise RuntimeDirectoryError(path, f"belongs to user {found.st_uid}, not to you")
    if found.st_mode & 0o077:
        raise RuntimeDirectoryError(
            path, f"is open to others (mode {stat.S_IMODE(found.st_mode):o}, not 700)"
        )


def check_file_system(path: str) -> None:
    """Raise RuntimeDirectoryError if locks are not what they should be there."""
    kind = files.file_system(path)
    if kind in _NETWORK:
        raise RuntimeDirectoryError(
            path,
            f"is on a network file system ({kind}), whose locks do not tell who holds them",
        )


#: File systems on which a lock is the server's, or a FIFO joins the processes of one machine.
# fmt: off
_NETWORK: Final = frozenset(
    {
        "nfs", "nfs4", "cifs", "smb3", "smbfs", "ncpfs", "9p", "afs", "ceph", "coda", "glusterfs",
        "lustre", "gpfs", "beegfs", "pvfs2", "orangefs", "panfs", "ocfs2", "gfs2", "fuse.sshfs",
        "fuse.glusterfs", "fuse.ceph", "fuse.ceph-fuse", "fuse.s3fs", "fuse.rclone", "fuse.davfs",
        "fuse.smbnetfs", "fuse.juicefs",
    }
)
# fmt: on
