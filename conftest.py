"""What the tests and the examples in docstrings share."""

from __future__ import annotations

import os
import tempfile

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Have Dask, which leaves two files behind, write where they go with the tests."""
    scratch = tempfile.TemporaryDirectory(prefix="mpkit-tests-", ignore_cleanup_errors=True)
    os.environ["DASK_TEMPORARY_DIRECTORY"] = scratch.name
    config.add_cleanup(scratch.cleanup)
