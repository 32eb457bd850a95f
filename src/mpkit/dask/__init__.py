"""The names of mpkit on a Dask cluster: ``import mpkit.dask as mpkit``.

The engine is `dask.distributed` (``mpkit[dask]``): its client, scheduler and workers. mpkit has to
be installed on the workers, too. What takes a ``client`` takes one that the program has, or the
address of a scheduler; without one it takes the current client, which in a task is its worker's.
"""

# Each line imports only from lines above it, and from mpkit:
#
#   _client      the connection to a cluster
#   _loop        to ask the scheduler, from any thread and any event loop
#   _site        places in the program, the same on all machines
#   _leases      slots, as the scheduler and a process know them
#   _limit       limit and Semaphore
#   _signal      Signal
#   _arrival     what workers get, if they lack mpkit
#   _broker      in the scheduler: where ends of channels meet, and jobs ask whether to begin
#   _node        where this process is in a cluster
#   _message     messages as frames      _state       what an end has to say and to hear
#   _link        how it says that        _port        an end in its process
#   _channel     Channel                 _job         start and Job
#   _claims      who has begun with what
#   _packet      what runs on workers      _loads      calls, pickled
#   _plan        which of them go together
#   _cluster     what is said to Dask      _lanes      who ran what
#   _ledger      which tasks there are     _settling   what becomes of them
#   _engine      the backend               _pool       TaskPool
#
# As in mpkit, what is on the cluster is imported when it is first asked for.

import importlib as _importlib
import typing as _typing

from mpkit import BrokenChannel as BrokenChannel
from mpkit import Calls as Calls
from mpkit import ChannelClosed as ChannelClosed
from mpkit import ChannelMoved as ChannelMoved
from mpkit import ChannelTimeout as ChannelTimeout
from mpkit import EndOfChannel as EndOfChannel
from mpkit import FunctionStats as FunctionStats
from mpkit import LeaseLost as LeaseLost
from mpkit import LimitMismatch as LimitMismatch
from mpkit import LimitTimeout as LimitTimeout
from mpkit import MemoryLimitExceeded as MemoryLimitExceeded
from mpkit import MessageTypeError as MessageTypeError
from mpkit import MpkitError as MpkitError
from mpkit import NotPicklable as NotPicklable
from mpkit import Options as Options
from mpkit import PeerDied as PeerDied
from mpkit import PoolClosed as PoolClosed
from mpkit import PoolExecutor as PoolExecutor
from mpkit import RemoteError as RemoteError
from mpkit import RemoteTraceback as RemoteTraceback
from mpkit import Report as Report
from mpkit import Results as Results
from mpkit import ResultTimeout as ResultTimeout
from mpkit import RuntimeDirectoryError as RuntimeDirectoryError
from mpkit import SchedulerLost as SchedulerLost
from mpkit import Spread as Spread
from mpkit import Stats as Stats
from mpkit import Task as Task
from mpkit import TaskExit as TaskExit
from mpkit import TaskTimeout as TaskTimeout
from mpkit import Trace as Trace
from mpkit import WorkerDied as WorkerDied
from mpkit import WorkerInitError as WorkerInitError
from mpkit import WorkerStats as WorkerStats
from mpkit import WouldDeadlock as WouldDeadlock
from mpkit import rng as rng
from mpkit import shared as shared
from mpkit import wait as wait
from mpkit import worker_state as worker_state

if _typing.TYPE_CHECKING:
    from mpkit.dask._channel import Channel as Channel
    from mpkit.dask._channel import channel as channel
    from mpkit.dask._job import Job as Job
    from mpkit.dask._job import start as start
    from mpkit.dask._limit import Semaphore as Semaphore
    from mpkit.dask._limit import limit as limit
    from mpkit.dask._pool import TaskPool as TaskPool
    from mpkit.dask._signal import Signal as Signal
else:
    #: In which module of this package each of the cluster's own names is.
    _HOMES = {
        "Channel": "_channel",
        "Job": "_job",
        "Semaphore": "_limit",
        "Signal": "_signal",
        "TaskPool": "_pool",
        "channel": "_channel",
        "limit": "_limit",
        "start": "_job",
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
