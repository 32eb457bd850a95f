"""The tests; and what spares the processes that they start the import of pytest.

A function that a spawned process is to run is looked up in the module of a test, which begins
with that import: a third of what such a process costs, in a thousand of them. All that a module
has pytest do while it is imported is to mark and to parametrize tests, which are not run there.
"""

from __future__ import annotations

import importlib
import multiprocessing
import sys
from types import ModuleType
from typing import Any


class _Unmarked:
    """What `pytest.mark` and the like are in a process that runs no tests."""

    def __getattr__(self, name: str) -> _Unmarked:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what is decorated; or, of arguments for a decorator, a decorator."""
        return args[0] if len(args) == 1 and callable(args[0]) and not kwargs else self


class _Deferred(ModuleType):
    """pytest, which is imported when something else of it is used."""

    mark = fixture = param = _Unmarked()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # the machinery of imports looks for some
            raise AttributeError(name)
        if sys.modules.get("pytest") is self:
            del sys.modules["pytest"]
        return getattr(importlib.import_module("pytest"), name)


if multiprocessing.parent_process() is not None:
    sys.modules.setdefault("pytest", _Deferred("pytest"))
