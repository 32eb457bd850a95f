"""Typed wrappers around multiprocessing that stay correct when processes die.

``limit`` and `Semaphore` bound a block across processes, `Signal` is an event that a
killed waiter cannot wedge, `channel` makes a typed duplex pipe whose end always arrives,
`start` runs a call in a process that returns its result, `TaskPool` runs many calls in
a few processes, and `wait` waits for any of them.
"""

# The map of the house. Each line imports only from lines above it:
#
#   _errors      every exception           _platform/  what differs by system or version
#   _reach       what arguments refer to   _fork       what a fork lets go of
#   _runtime     the folder in which processes meet
#   _presence    that a process is there   _wait       the one way to block
#   _anyof       wait: for several things  _signal     Signal
#   _bells       to wake one of another process
#   _slotfile    the file of a semaphore   _queue      those who wait for it
#   _slots       slots, as locks           _sharing    one of them for a path
#   _waiter      who wakes whom            _decorated  a function in a block
#   _semaphore, _limit                     Semaphore and limit
#   _listing     for `python -m mpkit limits`, in __main__
#   _culprit     what cannot be pickled    _frames     packets over a stream
#   _mainfile    what is below its guard   _reader     who has what of __main__
#   _byvalue     what he lacks             _pickling   objects to bytes
#   _link        packets over one socket   _streamlink the same over a stream
#   _links       which kind there is       _segment    memory beside a message
#   _parcel      messages, big buffers     _codec      pickle or msgspec
#   _closing     what is closed at exit    _end        messages and goodbyes
#   _line        who has to wait his turn  _messages   an end as an iterator
#   _port        an end in its process     _channel    Channel
#   _describe    what a call is called     _outcome    how a call's end travels
#   _call        how a call travels        _lifeline   children leave with us
#   _child       a process of ours         _process    start and Job
#   _worker/     in the workers of a pool: wire, slices, chunks, packing, journal, lent, packed, shared,
#                setup, what they say besides (logs, capture, aside), worker
#   _task/       context, options, seeds, carriage, task, asked
#   _watch/      stats, sketch, picture, trace, timeline, report, recorder
#   _engine/     runs tasks on them: actions, queues, reserve, starts, schedule (pure),
#                settings, listener, audience, feeds, ledger, inbox, crew, roster, shortcut, warden,
#                paces, verdict, dispatch, mailbox, intake, supervisor, backend, engine
#   _pool/       TaskPool: progress, async_input, lookahead, window, results, on_executor, inline,
#                lazy, gather, caller, executor, calls, pool
#   _selftest    tries all of that         _doctor     for `python -m mpkit doctor`
#   protocols    what mpkit and mpkit.dask have in common, for type checkers
#   joblib       a backend of joblib, for who imports it
#   dask/        the same names on a Dask cluster, with a map of its own
#
# Only the errors are imported at once. All else is when it is first asked for: a program that
# has a limit needs no pool, and neither do the workers of a pool, each of which imports mpkit
# anew unless it is forked.

import importlib as _importlib
import sys as _sys
import typing as _typing

if _sys.platform == "win32":  # before anything asks for what is not there
    raise ImportError(
        "mpkit needs Linux or macOS: Windows has no fcntl, no FIFOs and no descriptors "
        "over sockets, on which it rests. It works in WSL."
    )

from mpkit._errors import BrokenChannel as BrokenChannel
from mpkit._errors import ChannelClosed as ChannelClosed
from mpkit._errors import ChannelMoved as ChannelMoved
from mpkit._errors import ChannelTimeout as ChannelTimeout
from mpkit._errors import EndOfChannel as EndOfChannel
from mpkit._errors import LeaseLost as LeaseLost
from mpkit._errors import LimitMismatch as LimitMismatch
from mpkit._errors import LimitTimeout as LimitTimeout
from mpkit._errors import MemoryLimitExceeded as MemoryLimitExceeded
from mpkit._errors import MessageTypeError as MessageTypeError
from mpkit._errors import MpkitError as MpkitError
from mpkit._errors import NotPicklable as NotPicklable
from mpkit._errors import PeerDied as PeerDied
from mpkit._errors import PoolClosed as PoolClosed
from mpkit._errors import RemoteError as RemoteError
from mpkit._errors import RemoteTraceback as RemoteTraceback
from mpkit._errors import ResultTimeout as ResultTimeout
from mpkit._errors import RuntimeDirectoryError as RuntimeDirectoryError
from mpkit._errors import SchedulerLost as SchedulerLost
from mpkit._errors import TaskExit as TaskExit
from mpkit._errors import TaskTimeout as TaskTimeout
from mpkit._errors import WorkerDied as WorkerDied
from mpkit._errors import WorkerInitError as WorkerInitError
from mpkit._errors import WouldDeadlock as WouldDeadlock

if _typing.TYPE_CHECKING:
    from mpkit._anyof import wait as wait
    from mpkit._channel import Channel as Channel
    from mpkit._channel import channel as channel
    from mpkit._limit import Semaphore as Semaphore
    from mpkit._limit import limit as limit
    from mpkit._pool.calls import Calls as Calls
    from mpkit._pool.executor import PoolExecutor as PoolExecutor
    from mpkit._pool.pool import TaskPool as TaskPool
    from mpkit._pool.results import Results as Results
    from mpkit._process import Job as Job
    from mpkit._process import start as start
    from mpkit._signal import Signal as Signal
    from mpkit._task.options import Options as Options
    from mpkit._task.seeds import rng as rng
    from mpkit._task.task import Task as Task
    from mpkit._watch.report import Report as Report
    from mpkit._watch.stats import FunctionStats as FunctionStats
    from mpkit._watch.stats import Spread as Spread
    from mpkit._watch.stats import Stats as Stats
    from mpkit._watch.stats import WorkerStats as WorkerStats
    from mpkit._watch.trace import Trace as Trace
    from mpkit._worker.shared import shared as shared
    from mpkit._worker.worker import worker_state as worker_state
else:
    #: In which module each of these is.
    _HOMES = {
        "Calls": "_pool.calls",
        "Channel": "_channel",
        "FunctionStats": "_watch.stats",
        "Job": "_process",
        "Options": "_task.options",
        "PoolExecutor": "_pool.executor",
        "Report": "_watch.report",
        "Results": "_pool.results",
        "Semaphore": "_limit",
        "Signal": "_signal",
        "Spread": "_watch.stats",
        "Stats": "_watch.stats",
        "Task": "_task.task",
        "TaskPool": "_pool.pool",
        "Trace": "_watch.trace",
        "WorkerStats": "_watch.stats",
        "channel": "_channel",
        "limit": "_limit",
        "rng": "_task.seeds",
        "shared": "_worker.shared",
        "start": "_process",
        "wait": "_anyof",
        "worker_state": "_worker.worker",
    }

    # Hidden from type checkers: for them a module with a `__getattr__` has whatever is asked for.
    def __getattr__(name: str) -> object:
        home = _HOMES.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        thing: object = getattr(_importlib.import_module(f"{__name__}.{home}"), name)
        globals()[name] = thing  # so that this is asked once for each
        return thing


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


__all__ = [
    "BrokenChannel",
    "Calls",
    "Channel",
    "ChannelClosed",
    "ChannelMoved",
    "ChannelTimeout",
    "EndOfChannel",
    "FunctionStats",
    "Job",
    "LeaseLost",
    "LimitMismatch",
    "LimitTimeout",
    "MemoryLimitExceeded",
    "MessageTypeError",
    "MpkitError",
    "NotPicklable",
    "Options",
    "PeerDied",
    "PoolClosed",
    "PoolExecutor",
    "RemoteError",
    "RemoteTraceback",
    "Report",
    "ResultTimeout",
    "Results",
    "RuntimeDirectoryError",
    "SchedulerLost",
    "Semaphore",
    "Signal",
    "Spread",
    "Stats",
    "Task",
    "TaskExit",
    "TaskPool",
    "TaskTimeout",
    "Trace",
    "WorkerDied",
    "WorkerInitError",
    "WorkerStats",
    "WouldDeadlock",
    "channel",
    "limit",
    "rng",
    "shared",
    "start",
    "wait",
    "worker_state",
]

__version__ = "0.1.0"
