"""What an event does, alone: with the standard library."""

from __future__ import annotations

import multiprocessing


def main() -> None:
    event = multiprocessing.Event()
    print("at first:", event.is_set())
    event.set()
    print("after set:", event.is_set())
    print("wait returns at once:", event.wait())
    event.clear()
    print("after clear:", event.is_set())
    print("wait gives up after 10 ms:", event.wait(timeout=0.01))


if __name__ == "__main__":
    main()
