"""A child waits for a greeting from its parent, and answers.

What each end sends and receives is typed. The child's end moves there by itself: no copy
of it stays behind, so if the parent goes, the child's `recv` ends instead of waiting.
"""

from __future__ import annotations

import mpkit


def child(parent: mpkit.Channel[int, str]) -> None:
    greeting = parent.recv()
    print("child got:", greeting, flush=True)
    parent.send(len(greeting))


def main() -> None:
    here, there = mpkit.channel(send=str, recv=int)
    with mpkit.start(child, there):
        here.send("hello, child")
        print("parent got:", here.recv())


if __name__ == "__main__":
    main()
