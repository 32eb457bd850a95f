"""Whether somebody debugs this program: then seconds that pass are not the program's."""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from types import TracebackType

#: Modules of debuggers: the standard library's, and those of editors.
_DEBUGGERS: Final = ("bdb", "pdb", "pydevd", "_pydevd_bundle", "_pydevd_frame_eval")


def attached() -> bool:
    """Tell whether a debugger follows this thread; coverage, which does so too, is none."""
    trace: Any = sys.gettrace()
    module: object = getattr(trace, "__module__", None)
    if isinstance(module, str) and module.partition(".")[0] in _DEBUGGERS:
        return True
    monitoring: Any = getattr(sys, "monitoring", None)  # Python 3.12
    return monitoring is not None and monitoring.get_tool(monitoring.DEBUGGER_ID) is not None


def has_quit(error: BaseException) -> bool:
    """Tell whether an exception is the word of who debugs to end all that.

    It is raised where the program stands: `bdb.BdbQuit`, or by newer ones `SystemExit`.
    """
    trace, name = error.__traceback__, None
    while trace is not None:
        name = trace.tb_frame.f_globals.get("__name__")
        trace = trace.tb_next
    return name in ("bdb", "pdb")


class Watch:
    """Looks, during a block, whether it is debugged: by a breakpoint, or from outside."""

    def __enter__(self) -> Watch:
        self._attached = attached()
        self._hook: Any = sys.breakpointhook
        # It counts its calls, and is one of the few things that do so in C: a breakpoint stops
        # in the frame that has called the hook, and one of ours would be in between.
        self._counting: Any = functools.lru_cache(maxsize=0)(self._hook)
        sys.breakpointhook = self._counting
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if sys.breakpointhook is self._counting:  # or the block has set another one
            sys.breakpointhook = self._hook

    @property
    def debugged(self) -> bool:
        """Whether it was."""
        return self._attached or attached() or self._counting.cache_info().misses > 0
