"""A child waits for a greeting from its parent, and answers: with the standard library.

The pipe has to be there before the process. Each end that is not used has to be closed
by hand, on both sides: a copy that is forgotten keeps `recv` waiting when the other is gone.
"""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection


def child(parent: Connection, theirs: Connection) -> None:
    theirs.close()
    greeting = parent.recv()
    print("child got:", greeting, flush=True)
    parent.send(len(greeting))


def main() -> None:
    here, there = multiprocessing.Pipe()
    process = multiprocessing.Process(target=child, args=(there, here))
    process.start()
    there.close()
    here.send("hello, child")
    print("parent got:", here.recv())
    process.join()


if __name__ == "__main__":
    main()
