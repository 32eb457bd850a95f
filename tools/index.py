"""A package index on this machine, to rehearse upload and download against.

The server is a thread of this process, on a port that the system chooses: whatever ends
the process ends it, too.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import wsgiref.simple_server
from typing import TYPE_CHECKING, Any

import pypiserver

from tools.archives import Refused, call, hashes, same

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path


class _Quiet(wsgiref.simple_server.WSGIRequestHandler):
    """Answers without a line about each request."""

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: who asks tells what went wrong."""


@contextlib.contextmanager
def serving(packages: Path) -> Generator[str]:
    """Serve a folder as an index to which anybody may upload; yield its address."""
    # Or it tells stderr what it refuses.
    logging.getLogger("pypiserver").addHandler(logging.NullHandler())
    application: Any = pypiserver.app(
        roots=[packages],
        authenticate=[],  # for nothing a password is asked
        password_file=".",
        disable_fallback=True,  # what is not here is not anywhere
        backend_arg="simple-dir",
    )
    server = wsgiref.simple_server.make_server("127.0.0.1", 0, application, handler_class=_Quiet)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def without_settings() -> dict[str, str]:
    """Return the environment less what could lead pip, twine or Python elsewhere."""
    settings = ("PIP_", "PYTHON", "TWINE_", "VIRTUAL_ENV", "HTTP_PROXY", "ALL_PROXY")
    kept = {
        name: text for name, text in os.environ.items() if not name.upper().startswith(settings)
    }
    return {
        **kept,
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_CACHE_DIR": "1",
        "PIP_NO_INPUT": "1",
    }


def upload(dist: Path, index: str) -> None:
    """Upload what is in dist/, as the release does; refuse an index that takes it twice."""
    files = [str(dist / name) for name in hashes(dist)]
    command = [sys.executable, "-m", "twine", "upload", "--non-interactive"]
    command += ["--disable-progress-bar", "--config-file", os.devnull]
    command += ["--repository-url", index, "-u", "nobody", "-p", "none"]
    call(*command, *files, environment=without_settings())
    try:
        call(*command, *files, environment=without_settings())
    except Refused:
        return
    raise Refused(
        f"{index} took the same files twice: this is no rehearsal of an index that does not."
    )


def download(requirement: str, index: str, expected: dict[str, str], into: Path) -> None:
    """Download both archives; refuse what is not, to the byte, what was uploaded."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-build-isolation"]
    command += ["--index-url", f"{index}/simple", "--dest", str(into), requirement]
    call(*command, "--only-binary=:all:", environment=without_settings())
    call(*command, "--no-binary=:all:", environment=without_settings())
    same(expected, into, "when downloaded again")
