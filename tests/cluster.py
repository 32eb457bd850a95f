"""Real Dask clusters on this machine: a scheduler and workers, each a process of its own.

A test takes the fixture ``cluster``, which all share, and leaves it as it was; one that
kills or stops something takes ``make_cluster`` and has one of its own. (``tests/conftest.py``
has both.) They live on loopback, at ports that the system chooses, and end with the tests,
however those end.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support import PATIENCE, until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: What every process of a cluster is configured with, besides what a test says.
CONFIG: dict[str, Any] = {
    "distributed.worker.profile.enabled": False,
    "distributed.admin.system-monitor.disk": False,
    "distributed.logging": {"distributed": "info"},
}


class Host:
    """Starts processes of clusters; see `tests.cluster_host`."""

    def __init__(self, prefix: Sequence[str] = ()) -> None:
        """``prefix``: a command that runs the command that follows it, elsewhere."""
        self._program = subprocess.Popen(
            [*prefix, sys.executable, "-m", "tests.cluster_host"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            # A Ctrl-C is for the tests, which then end this.
            process_group=0,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        self._unread = b""
        #: Held from an order until all its answers are there.
        self.lock = threading.Lock()
        self.pid = self._program.pid

    def fds(self) -> list[int]:
        """Return what it is talked to by."""
        pipes = self._program.stdin, self._program.stdout
        return [pipe.fileno() for pipe in pipes if pipe is not None]

    def order(self, what: str, **facts: Any) -> None:
        """Ask for something."""
        stdin = self._program.stdin
        assert stdin is not None
        stdin.write(json.dumps({"what": what, **facts}).encode() + b"\n")

    def answer(self) -> dict[str, Any]:
        """Return the next answer."""
        stdout = self._program.stdout
        assert stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            while b"\n" not in self._unread:
                assert selector.select(PATIENCE), "no answer: look at the logs of the cluster"
                received = os.read(stdout.fileno(), 65536)
                assert received, "the host of the clusters has ended"
                self._unread += received
        line, _, self._unread = self._unread.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def wait(self, pid: int, until: str) -> int:
        """Wait for what becomes of a process: its ``"end"``, ``"stop"`` or ``"continue"``.

        Returns:
            Its status, as of `os.waitpid`.
        """
        with self.lock:
            self.order("wait", pid=pid, until=until)
            status: int = self.answer()["status"]
        return status

    def wait_until_ready(self) -> None:
        """Return when it is there: so it is where ``prefix`` has put it."""
        with self.lock:
            self.order("answer")
            self.answer()

    def close(self) -> None:
        """End it, and all that it has started."""
        for pipe in (self._program.stdin, self._program.stdout):
            assert pipe is not None
            pipe.close()
        assert self._program.wait(PATIENCE) == 0


@dataclass(frozen=True)
class Server:
    """A process of a cluster."""

    pid: int
    address: str
    log: Path
    host: Host

    def kill(self) -> None:
        """End it by SIGKILL; return when it has ended, by that or before."""
        os.kill(self.pid, signal.SIGKILL)
        self.wait()

    def wait(self) -> int:
        """Return how it has ended, once it has, as a negative signal or an exit code."""
        return os.waitstatus_to_exitcode(self.host.wait(self.pid, "end"))

    def stop(self) -> None:
        """Have it stand still, as on a machine that cannot be reached."""
        os.kill(self.pid, signal.SIGSTOP)
        assert os.WIFSTOPPED(self.host.wait(self.pid, "stop"))

    def cont(self) -> None:
        """Have it go on."""
        os.kill(self.pid, signal.SIGCONT)
        assert os.WIFCONTINUED(self.host.wait(self.pid, "continue"))


class Cluster:
    """A scheduler and its workers. Left as a context manager, all of them are killed."""

    def __init__(
        self,
        host: Host,
        folder: Path,
        workers: int = 2,
        *,
        threads: int = 1,
        config: dict[str, Any] | None = None,
        address: str = "127.0.0.1",
    ) -> None:
        """Start it; return when all workers are known to the scheduler.

        Args:
            host: Who starts its processes.
            folder: Where they may write. Their logs are there, too.
            workers: How many.
            threads: Of each of them.
            config: What Dask's configuration is to have, by dotted names. For the processes of
                the cluster, and not for the client, which is in the process of the test.
            address: At which the scheduler listens.
        """
        self.host = host
        self.folder = folder
        self.config = {**CONFIG, "temporary-directory": str(folder), **(config or {})}
        #: Those that live, in the order of their start.
        self.workers: list[Server] = []
        self._started = 0
        self.scheduler: Server | None = None
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            with host.lock:
                scheduler = {"host": address, "dashboard_address": f"{address}:0"}
                self._order(host, "scheduler", {**scheduler, "dashboard": False})
                answer = host.answer()
            assert "error" not in answer, answer["error"]
            self.scheduler = _server(answer, host)
            self.address = self.scheduler.address
            self.add_workers(workers, threads)
            undo.pop_all()

    def add_worker(self, threads: int = 1) -> Server:
        """Start a worker; return it when the scheduler knows it."""
        (worker,) = self.add_workers(1, threads)
        return worker

    def add_workers(
        self,
        count: int,
        threads: int = 1,
        *,
        nanny: bool = False,
        host: Host | None = None,
        address: str = "127.0.0.1",
    ) -> list[Server]:
        """Start several at the same time, perhaps on another host; return them.

        With ``nanny``, each is the child of a process that starts another one when it dies, and
        ``pid`` is that of the nanny. (Such a worker takes a second to start: it is not forked.)
        """
        host = host or self.host
        worker = {
            "scheduler_ip": self.address,
            "nthreads": threads,
            "host": address,
            "local_directory": str(self.folder),
            "memory_limit": 0,  # none
            "dashboard_address": f"{address}:0",
            "death_timeout": PATIENCE,
        }
        with host.lock:
            for _ in range(count):
                self._order(host, "nanny" if nanny else "worker", worker)
            answers = [host.answer() for _ in range(count)]
        started = [_server(answer, host) for answer in answers if "error" not in answer]
        self.workers += started
        for answer in answers:
            assert "error" not in answer, answer["error"]
        return started

    def kill(self, worker: Server) -> None:
        """End a worker by SIGKILL; return when it has ended (and who knows is another matter)."""
        self.workers.remove(worker)
        worker.kill()

    def wait(self, worker: Server) -> int:
        """Wait for a worker that ends by itself; return how, as a signal (-9) or an exit code."""
        self.workers.remove(worker)
        return worker.wait()

    def stop(self, worker: Server) -> None:
        """Have a worker stand still, as on a machine that cannot be reached."""
        worker.stop()

    def cont(self, worker: Server) -> None:
        """Have a worker go on."""
        worker.cont()

    def kill_scheduler(self) -> None:
        """End the scheduler by SIGKILL."""
        assert self.scheduler is not None
        scheduler, self.scheduler = self.scheduler, None
        scheduler.kill()

    def client(self, **options: Any) -> Any:
        """Return a client of the cluster, to be closed by the test: a context manager.

        It is not made Dask's default client, if ``set_as_default`` does not say so.
        """
        from distributed import Client  # here, lest all tests import it

        return Client(self.address, **{"set_as_default": False, "timeout": PATIENCE, **options})

    def logs(self) -> str:
        """Return what the processes have said so far."""
        paths = sorted(self.folder.glob("*.log"))
        return "\n".join(f"{path.name}:\n{path.read_text()}" for path in paths)

    def close(self) -> None:
        """Kill all there is."""
        servers = [*self.workers, *([self.scheduler] if self.scheduler else [])]
        self.workers, self.scheduler = [], None
        for server in servers:
            server.kill()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _order(self, host: Host, what: str, options: dict[str, Any]) -> None:
        log = str(self.folder / f"{what}-{self._started:03}.log")
        self._started += 1
        host.order(what, config=self.config, options=options, log=log)


def _server(answer: dict[str, Any], host: Host) -> Server:
    return Server(answer["pid"], answer["address"], Path(answer["log"]), host)


@contextlib.contextmanager
def current_client(cluster: Cluster) -> Iterator[Any]:
    """Make a client the current one; leave when no end of a channel and no job has more to do."""
    from mpkit.dask import _job, _link

    with cluster.client() as client, client.as_current():
        yield client
        until(lambda: not _link._busy and not _job._unfinished)
