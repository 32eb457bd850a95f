"""What an event does, alone: not set at first; `wait` blocks while it is not set."""

from __future__ import annotations

import mpkit


def main() -> None:
    event = mpkit.Signal()
    print("at first:", event.is_set())
    event.set()
    print("after set:", event.is_set())
    print("wait returns at once:", event.wait())
    event.clear()
    print("after clear:", event.is_set())
    print("wait gives up after 10 ms:", event.wait(timeout=0.01))


if __name__ == "__main__":
    main()
