"""What the how-tos show that is no program by itself: apps of web servers, cells, coverage."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import tomllib
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import mpkit
from tests.documents import ROOT, blocks
from tests.process import anywhere
from tests.support import PATIENCE, until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.any_python

SERVERS = "docs/howto/web-servers.md"


def send(path: Path, target: str) -> socket.socket:
    """Send a request, whose answer may be read from what is returned."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(PATIENCE)
    try:
        connection.connect(os.fspath(path))
        connection.sendall(f"GET {target} HTTP/1.0\r\n\r\n".encode())
    except BaseException:
        connection.close()
        raise
    return connection


def get(path: Path, target: str = "/") -> tuple[int, str]:
    """Return the status and the body of an answer."""
    with send(path, target) as connection, connection.makefile("rb") as answer:
        head, _, body = answer.read().partition(b"\r\n\r\n")
    return int(head.split()[1]), body.decode()


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return an empty folder of a short name: the path of a socket has some 100 characters."""
    with tempfile.TemporaryDirectory(prefix="mpkit-", dir="/tmp") as name:
        yield Path(name)


@contextlib.contextmanager
def serving(folder: Path, *command: str) -> Iterator[Path]:
    """Run a server in a folder; return the socket at which it listens."""
    path = folder / "socket"
    said = folder / "said.txt"
    with open(said, "wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # with its workers, which may outlive it
            # gunicorn keeps a socket of its own below the home.
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "HOME": str(folder)},
        )

    def listening() -> bool:
        assert server.poll() is None, said.read_text()
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
            connection.connect(os.fspath(path))
            return True
        return False

    try:
        until(listening)
        yield path
        server.send_signal(signal.SIGTERM)
        server.wait(PATIENCE)
        assert "Traceback" not in said.read_text()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait(PATIENCE)


#: The app of the how-to, with a place in which a request stays.
_STAYS = """
import mpkit
from app import app as shown

def app(environ, start_response):
    if environ["PATH_INFO"] == "/stay":
        with mpkit.limit(2, name="shop-database"):
            mpkit.Signal(name="shop-database-never").wait()
    return shown(environ, start_response)
"""


@pytest.mark.parametrize("when", ["after the fork", "--preload"])
def test_workers_of_gunicorn_share_a_limit_and_a_killed_one_gives_its_slot_back(
    folder: Path, when: str
) -> None:
    pytest.importorskip("gunicorn")
    name = f"howto-{uuid.uuid4().hex}"
    (block, *_) = blocks(SERVERS)
    shown = block.code.replace("shop-database", name).replace("timeout=5", "timeout=0.1")
    (folder / "app.py").write_text(shown)
    (folder / "stays.py").write_text(_STAYS.replace("shop-database", name))
    options = [when] if when.startswith("-") else []
    # A worker that is forked just when gunicorn is to end may miss that, and is killed after this.
    options.append("--graceful-timeout=1")
    command = ["gunicorn", "--workers=3", "--bind=unix:socket", *options, "stays:app"]
    slots = mpkit.Semaphore(2, name=name)
    with serving(folder, *command) as path, contextlib.ExitStack() as stack:
        assert get(path) == (200, "1 of 2 connections in use\n")
        for _ in range(2):
            stack.enter_context(send(path, "/stay"))
        until(lambda: slots.available == 0)
        assert get(path) == (503, "The database is busy.\n")
        for holder in slots.holders():
            os.kill(holder.pid, signal.SIGKILL)
        until(lambda: slots.available == 2)
        assert get(path) == (200, "1 of 2 connections in use\n")


def test_workers_of_uvicorn_have_a_pool_each_and_end_it(folder: Path) -> None:
    pytest.importorskip("uvicorn")
    (_, block) = blocks(SERVERS)
    name = f"howto-{uuid.uuid4().hex}"
    (folder / "app.py").write_text(block.code.replace("shop-renderer", name))
    with serving(folder, "uvicorn", "--workers=2", "--uds=socket", "app:app") as path:
        for _ in range(4):
            assert get(path) == (200, "##########\n")


def test_the_cells_of_the_page_about_notebooks_run(tmp_path: Path) -> None:
    for package in ("nbclient", "ipykernel", "cloudpickle"):
        pytest.importorskip(package)
    text = (ROOT / "docs/howto/notebooks.md").read_text(encoding="utf-8")
    cells = re.findall(r"^```python3\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(cells) == 2
    ran = anywhere.run("# cell\n".join(cells), "notebook", tmp_path, "spawn", cloudpickle=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "[3.142, 3.142, 3.141]\n"


MEASURED = """
def size(number):
    if number > 2:
        return "large"
    return "small"
"""


@pytest.mark.parametrize("start_method", multiprocessing.get_all_start_methods())
def test_coverage_sees_what_workers_and_jobs_run(tmp_path: Path, start_method: str) -> None:
    pytest.importorskip("coverage")
    text = (ROOT / "docs/howto/testing.md").read_text(encoding="utf-8")
    (settings,) = re.findall(r"^```toml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert tomllib.loads(settings)
    (tmp_path / "pyproject.toml").write_text(settings)
    (tmp_path / "measured.py").write_text(MEASURED)
    (tmp_path / "program.py").write_text(
        "import multiprocessing, mpkit\n"
        "from measured import size\n"
        "if __name__ == '__main__':\n"
        f"    multiprocessing.set_start_method({start_method!r})\n"
        "    with mpkit.TaskPool(2) as pool:\n"
        "        assert pool.map(size, [1]) == ['small']\n"
        "    assert mpkit.start(size, 3).result() == 'large'\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

    def coverage(*command: str) -> str:
        ran = subprocess.run(
            [sys.executable, "-m", "coverage", *command],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            timeout=4 * PATIENCE,
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout

    coverage("run", "program.py")
    coverage("combine")
    seen = json.loads(coverage("json", "-o", "-", "--include=measured.py"))
    assert seen["files"]["measured.py"]["missing_lines"] == []
