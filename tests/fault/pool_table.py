"""The table of docs/faults.md: what a caller gets for each place and kind of fault.

`test_pool_table.py` holds every cell of it, and compares the page with `rendered`.
``python -m tests.fault.pool_table`` prints it for the page.
"""

from __future__ import annotations

#: Each how, as `tests.poolwork.die` and as the head of a column know it.
HOWS = {
    "exception": "exception",
    "two-argument exception": "exception that cannot be rebuilt",
    "BaseException": "BaseException",
    "sys.exit": "`sys.exit`",
    "os._exit": "`os._exit`",
    "SIGKILL": "SIGKILL",
    "SIGTERM": "SIGTERM",
    "SIGSEGV": "SIGSEGV",
    "SIGSTOP": "SIGSTOP",
    "out of memory": "out of memory",
    "recursion limit": "recursion limit",
    "no descriptors": "closes its descriptors",
    "garbage": "prints garbage",
}

#: What the letters mean. Of the task that it happened in; all others go on.
LEGEND = {
    "E": "the exception itself, with the worker's traceback as its last cause",
    "R": "{py:obj}`~mpkit.RemoteError`, which has type, message and traceback as text",
    "X": "{py:obj}`~mpkit.TaskExit`, which has the code",
    "D": "{py:obj}`~mpkit.WorkerDied`, which names the task, the pid, the exit code or signal, "
    "and what the kernel tells of the cause; the worker is replaced",
    "T": "{py:obj}`~mpkit.TaskTimeout`, if it has a `timeout`; the worker is replaced. "
    "(Without one it waits until somebody continues the worker.)",
    "N": "{py:obj}`~mpkit.NotPicklable`, which names the object and the path to it",
    "I": "{py:obj}`~mpkit.WorkerInitError` on every task that waits, with the reason, if three "
    "workers in a row say that their initializer failed, or as many as the pool has, and three more, "
    "end before they could start; after fewer, nothing",
    "W": "nothing, as long as another worker can start; a worker that is stopped while it "
    "starts is waited for, until somebody continues it or the pool is terminated",
    "w": "a task that is sent to it is run elsewhere when its `timeout` is over (without one it waits "
    "until somebody continues the worker); the worker is replaced",
    "c": "the call (`submit`, `map`) raises it, in your own thread",
    "l": "`sys.excepthook` reports it, with the task's name; the result is there",
    "o": "nothing: the task has its result, no task fails, and a worker that died is replaced",
    "p": "the program itself ends by it, since this runs in the program; its workers leave with it",
    "s": "the task is settled (`CancelledError`, `WorkerDied` or what it raised), "
    "`join` returns, and no process is left",
    "–": "does not happen there",
}

#: For each place, the columns in the order of `HOWS`.
TABLE = {
    #                                          exc 2arg base exit _exit KILL TERM SEGV STOP mem rec fds print
    "pickling an argument":                   "N   N    c    c    p     p    p    p    –    N   N   –   o",
    "unpickling it":                          "E   R    R    X    D     D    D    D    T    E   E   D   o",
    "a large argument, half unpickled":       "E   R    R    X    D     D    D    D    T    E   E   D   o",
    "the initializer":                        "I   I    I    I    I     I    I    I    W    I   I   I   o",
    "starting (unpickling its arguments)":    "I   I    I    I    I     I    I    I    W    I   I   I   o",
    "running":                                "E   R    R    X    D     D    D    D    T    E   E   D   o",
    "pickling its exception":                 "R   R    R    R    D     D    D    D    T    R   R   D   E",
    "unpickling it, tried in the worker":     "R   R    R    R    D     D    D    D    T    R   R   D   E",
    "unpickling it here":                     "R   R    R    R    p     p    p    p    –    R   R   –   E",
    "pickling its result":                    "N   N    R    X    D     D    D    D    T    N   N   D   o",
    "a large result, half pickled":           "N   N    R    X    D     D    D    D    T    N   N   D   o",
    "unpickling it in the program":           "E   E    R    X    p     p    p    p    –    E   E   –   o",
    "a callback":                             "l   l    l    l    p     p    p    p    –    l   l   –   o",
    "idle (in a thread that a task left)":    "o   o    o    o    o     o    o    o    w    o   o   o   o",
    "while the pool is closed":               "E   R    R    X    D     D    D    D    T    E   E   D   o",
    "while it is terminated":                 "s   s    s    s    s     s    s    s    s    s   s   s   s",
}  # fmt: skip


def expected(where: str, how: str) -> str:
    """Return the letter of a cell."""
    return dict(zip(HOWS, TABLE[where].split(), strict=True))[how]


def rendered() -> str:
    """Return the table and its legend as Markdown."""
    lines = [f"| | {' | '.join(HOWS.values())} |", f"|---|{':-:|' * len(HOWS)}"]
    lines += [f"| {where} | {' | '.join(cells.split())} |" for where, cells in TABLE.items()]
    lines += ["", "| | what the caller gets |", "|:-:|---|"]
    lines += [f"| {letter} | {meaning} |" for letter, meaning in LEGEND.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(rendered(), end="")
