"""What processes that multiprocessing starts have of this program's main module.

Under fork they have all of it. Under spawn and forkserver they import its file once more, as
``__mp_main__``, if it has one: what was typed into a notebook or at a prompt, came by ``python
-c`` or by standard input, or is the ``__main__`` of a package, they do not have.
"""

from __future__ import annotations

import multiprocessing.process
import os
import sys
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from types import TracebackType

#: The names of the main module: here, and in processes that have imported it.
NAMES: Final = ("__main__", "__mp_main__")

#: What a program has to do that starts processes while it is imported.
GUARD: Final = 'that has to be below `if __name__ == "__main__":`'


def start_directory() -> str:
    """Return the working directory in which the program began."""
    return multiprocessing.process.ORIGINAL_DIR or os.getcwd()  # type: ignore[attr-defined]


def imported_file() -> str | None:
    """Return the file that new processes import as their main module; None if there is none.

    It may be one that cannot be read, in a program that was frozen.
    """
    main = sys.modules.get("__main__")
    spec: Any = getattr(main, "__spec__", None)
    name: str | None = getattr(spec, "name", None)
    if name is not None:
        if name == "__main__" or name.endswith(".__main__"):
            return None
        return spec.origin or name
    path: str | None = getattr(main, "__file__", None)
    if path is None or _is_no_file(path):
        return None
    if os.path.splitext(os.path.basename(path))[0] == "ipython":  # which has no guard
        return None
    return os.path.normpath(os.path.join(start_directory(), path))


def is_being_imported() -> bool:
    """Tell whether this process is being prepared by multiprocessing.

    It may be the fork server then, importing the program's main module for children
    that are not born yet: it does not belong to the program's family, they will.
    """
    return getattr(multiprocessing.process.current_process(), "_inheriting", False)


class _Unguarded(RuntimeError):
    """Only ever seen in a process that ends by it."""


def refuse_if_being_imported() -> None:
    """Raise if this process has come to start one while it imports the program's main module.

    The program lacks its guard then, and all processes that it starts come here. So each says it
    in a line: multiprocessing has each print sixty, in which the program's own line is lost.
    """
    if not is_being_imported():
        return
    before = sys.excepthook

    def say_it_briefly(
        kind: type[BaseException], value: BaseException, traceback: TracebackType | None
    ) -> None:
        if kind is _Unguarded:
            sys.stderr.write(f"{_line_of_main(traceback)}: {value}\n")
            sys.stderr.flush()
        else:
            before(kind, value, traceback)

    sys.excepthook = say_it_briefly
    raise _Unguarded(
        f"each new process imports this file, and would start others by this line: {GUARD}"
    )


def _line_of_main(traceback: TracebackType | None) -> str:
    """Return where a traceback was in the main module last."""
    place = "the program"
    while traceback is not None:
        code = traceback.tb_frame.f_code
        if traceback.tb_frame.f_globals.get("__name__") in NAMES and code.co_name == "<module>":
            place = f"{code.co_filename}:{traceback.tb_lineno}"
        traceback = traceback.tb_next
    return place


def why_not_imported() -> str:
    """Tell why `imported_file` is None, as the end of a sentence."""
    name: str | None = getattr(getattr(sys.modules.get("__main__"), "__spec__", None), "name", None)
    if name is not None:
        return f"new processes do not import {name}, for it has no guard"
    return (
        "new processes have nothing of a program that was typed in (as in a notebook), or came "
        "by python -c or by standard input"
    )


def at_a_prompt() -> bool:
    """Tell whether somebody types what belongs to the main module."""
    return hasattr(sys, "ps1")


def spare_new_processes_what_is_no_file() -> None:
    """Have multiprocessing start processes in a program that comes by standard input, too.

    They would try to import "<stdin>", and end. Nothing is changed in any other program.
    """
    if not _is_no_file(getattr(sys.modules.get("__main__"), "__file__", None)):
        return
    from multiprocessing import spawn  # noqa: PLC0415  there already, as a rule

    prepare: Any = spawn.get_preparation_data
    if getattr(prepare, "spares", False):
        return

    def get_preparation_data(name: str) -> dict[str, Any]:
        data: dict[str, Any] = prepare(name)
        if _is_no_file(os.path.basename(data.get("init_main_from_path", ""))):
            del data["init_main_from_path"]
        return data

    vars(get_preparation_data)["spares"] = True
    setattr(spawn, "get_preparation_data", get_preparation_data)  # noqa: B010


def _is_no_file(path: str | None) -> bool:
    """Tell whether a path is what Python calls standard input and the like."""
    return path is not None and path[:1] == "<" and path[-1:] == ">" and not os.path.exists(path)
