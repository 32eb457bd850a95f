"""Log records and warnings of a worker: how they are made ready to travel, and read.

In a worker each logger is as quiet as it is in the parent, and none has a handler but the root,
which has one that sends. So a record is made where it would be made in the parent, and what
the parent has by way of filters and handlers is applied once, there: see `listener`. A handler
that a fork handed down writes to the parent's file, maybe while the parent does, and may hold a
lock that nobody is left to let go.
"""

from __future__ import annotations

import builtins
import logging
import pickle
import re
import sys
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from mpkit import _pickling

if TYPE_CHECKING:
    from typing import TextIO

#: Sends what was packed; False if nobody is there any more.
Send = Callable[[bytes], bool]

#: What travels as it is, and so can be read anywhere.
_PLAIN: Final = (str, int, float, bool, type(None))

_formatter = logging.Formatter()

#: What every record has. All else was put there by ``extra=`` or a filter, and may be anything.
_COMMON: Final = frozenset(vars(logging.makeLogRecord({}))) | {"taskName"}


class Loudness(NamedTuple):
    """How quiet the loggers of the parent are, and which warnings it wants to see."""

    #: Records below this level are not sent.
    threshold: int
    disabled_up_to: int
    root: int
    levels: dict[str, int]
    #: Loggers that are switched off.
    off: list[str]
    #: None if they are inherited.
    filters: list[tuple[str, str, type[Warning], str, int]] | None


def loudness(threshold: int, *, forks: bool) -> Loudness:
    """Return that of this process, as it is now."""
    manager = logging.root.manager
    loggers = {
        name: logger
        for name, logger in dict(manager.loggerDict).items()
        if isinstance(logger, logging.Logger)
    }
    return Loudness(
        threshold,
        manager.disable,
        logging.root.level,
        {name: logger.level for name, logger in loggers.items() if logger.level},
        [name for name, logger in loggers.items() if logger.disabled],
        None if forks else _filters(),
    )


def _filters() -> list[tuple[str, str, type[Warning], str, int]]:
    """Return the filters of warnings that any process understands, the first ones first.

    One for a class of some module would have a worker import that. What such a filter would
    keep out, the parent's keeps out.
    """
    found: list[tuple[str, str, type[Warning], str, int]] = []
    for action, message, category, module, line in list(cast("Any", warnings.filters)):
        # Several, where `warnings.simplefilter` was given a tuple.
        several = isinstance(category, tuple)
        kinds = cast("tuple[Any, ...]", category) if several else (category,)
        found += [
            (action, _pattern(message), kind, _pattern(module), line)
            for kind in kinds
            if getattr(kind, "__module__", None) == "builtins"
        ]
    return found


def _pattern(part: Any) -> str:
    """Return the text of a pattern, of what is one, is none, or is a whole name."""
    if part is None:
        return ""
    text: str = re.escape(part) + r"\Z" if isinstance(part, str) else part.pattern
    return text


def begin(found: Loudness, send_record: Send, send_warning: Send) -> None:
    """Be as quiet as the parent, and send what is to be heard; in a worker, before all else."""
    manager = logging.root.manager
    known = [logger for logger in manager.loggerDict.values() if isinstance(logger, logging.Logger)]
    for logger in (logging.root, *known):
        # Not closed: they are the parent's, and so are their files.
        logger.handlers = []
        logger.filters = []
        logger.propagate, logger.disabled = True, False
    logging.disable(found.disabled_up_to)
    logging.root.setLevel(found.root)
    for name, level in found.levels.items():
        logging.getLogger(name).setLevel(level)
    for name in found.off:
        logging.getLogger(name).disabled = True
    logging.root.addHandler(Forwarder(found.threshold, send_record))
    if found.filters is not None:
        warnings.resetwarnings()
        for action, message, category, module, line in found.filters:
            warnings.filterwarnings(
                cast("Any", action), message, category, module, line, append=True
            )
    _forward_warnings(send_warning)


class Forwarder(logging.Handler):
    """The only handler of a worker."""

    def __init__(self, level: int, send: Send) -> None:
        super().__init__(level)
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record. When this returns, it will be handled, whatever becomes of us."""
        try:
            sent = self._send(pack_record(record))
        except RecursionError:
            raise
        except Exception:  # noqa: BLE001  its arguments do not fit its text, say
            self.handleError(record)
            return
        last = logging.lastResort
        if not sent and last is not None and record.levelno >= last.level:
            last.handle(record)


def pack_record(record: logging.LogRecord) -> bytes:
    """Return a record as bytes that can be read in any process.

    Its text and arguments stay apart if these are numbers and texts. What cannot travel of what
    else it has is shown.
    """
    facts = dict(vars(record))
    facts.pop("message", None)
    exc_info = facts.pop("exc_info", None)
    if isinstance(exc_info, tuple) and not record.exc_text:
        facts["exc_text"] = _formatter.formatException(cast("Any", exc_info))
    if type(record.msg) is not str or not _all_plain(record.args):
        facts["msg"], facts["args"] = str.__str__(record.getMessage()), None
    args = facts.pop("args", None)
    common: dict[str, Any] = {"args": args}
    extras: dict[str, bytes] = {}
    for name, fact in facts.items():
        if type(fact) in _PLAIN:
            common[name] = fact
        elif name in _COMMON:
            common[name] = _pickling.shown(fact)
        else:
            extras[name] = _packed(fact)
    return pickle.dumps((common, extras), pickle.HIGHEST_PROTOCOL)


def _all_plain(args: Any) -> bool:
    if args is None:
        return True
    if type(args) is dict:
        named = cast("dict[object, object]", args)
        return all(type(key) is str and type(value) in _PLAIN for key, value in named.items())
    return type(args) is tuple and all(type(arg) in _PLAIN for arg in cast("Any", args))


def _packed(fact: Any) -> bytes:
    try:
        return pickle.dumps(fact, pickle.HIGHEST_PROTOCOL)
    except Exception:  # noqa: BLE001  pickling is user code
        return pickle.dumps(_pickling.shown(fact))


def unpack_record(data: bytes) -> logging.LogRecord:
    """Return the record that was packed."""
    common, extras = pickle.loads(data)
    for name, stream in extras.items():
        try:
            common[name] = pickle.loads(stream)
        except Exception as error:  # noqa: BLE001  unpickling is user code
            common[name] = f"<cannot be unpickled here: {type(error).__name__}: {error}>"
    return logging.makeLogRecord(common)


class Warned(NamedTuple):
    """A warning, and where it was given."""

    text: str
    category: type[Warning]
    filename: str
    line: int


def pack_warning(warned: Warned) -> bytes:
    """Return a warning as bytes that can be read in any process."""
    category = warned.category
    try:
        stream = pickle.dumps(category)
    except Exception:  # noqa: BLE001  a class of a function's, say
        stream = b""
    builtin = next(kind.__name__ for kind in category.__mro__ if kind.__module__ == "builtins")
    names = category.__name__, builtin
    return pickle.dumps((warned.text, stream, names, warned.filename, warned.line))


def unpack_warning(data: bytes) -> Warned:
    """Return the warning that was packed; as one of its builtin base if there is no such class."""
    text, stream, (name, builtin), filename, line = pickle.loads(data)
    try:
        category: type[Warning] = pickle.loads(stream)
        category(text)
    except Exception:  # noqa: BLE001  unpickling is user code, and so is making one
        category, text = getattr(builtins, builtin), f"{name}: {text}"
    return Warned(text, category, filename, line)


def _forward_warnings(send: Send) -> None:
    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        warned = Warned(str(message), category, filename, lineno)
        if file is None and send(pack_warning(warned)):
            return
        # Nobody listens; or somebody has said where it is to go.
        text = warnings.formatwarning(message, category, filename, lineno, line)
        print(text, end="", file=file or sys.stderr)

    warnings.showwarning = show
