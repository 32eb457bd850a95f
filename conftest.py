"""What the tests and the examples in docstrings share."""

from __future__ import annotations

import os
import tempfile

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Have what programs leave in the folder for temporary files go with the tests.

    multiprocessing leaves something of a program that is killed, as tests do; and Dask does always.
    """
    scratch = tempfile.TemporaryDirectory(prefix="mpkit-", ignore_cleanup_errors=True)
    os.environ["TMPDIR"] = os.environ["DASK_TEMPORARY_DIRECTORY"] = scratch.name
    config.add_cleanup(scratch.cleanup)
