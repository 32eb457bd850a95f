"""Counts words with all that mpkit has, and types that say what each thing carries."""

from __future__ import annotations

import multiprocessing
import sys
from typing import TYPE_CHECKING, assert_type

import mpkit

TEXTS = ["one two", "three", "four five six", ""]


def count(text: str) -> int:
    """Return how many words a text has."""
    with mpkit.limit(2):
        return len(text.split())


def clerk(texts: mpkit.Channel[int, str], closed: mpkit.Signal) -> str:
    """Answer each text with its number of words."""
    for text in texts:
        texts.send(count(text))
    closed.set()
    return "closed"


def main() -> None:
    """Count, three times over."""
    with mpkit.TaskPool(2) as pool:
        counts = pool.map(count, TEXTS)
        assert_type(counts, list[int])
        task = pool.submit(count, TEXTS[0])
        assert_type(task, mpkit.Task[int])
        print(counts, task.result(timeout=60), mpkit.wait(task) == [task])
    closed = mpkit.Signal()
    here, there = mpkit.channel(send=str, recv=int)
    with mpkit.start(clerk, there, closed) as job:
        answers = [here.request(text) for text in TEXTS]
        here.close_send()
        assert_type(answers, list[int])
        assert_type(job.result(timeout=60), str)
    print(answers, job.result(), closed.wait(timeout=60))


if TYPE_CHECKING:  # wrong, and has to be so for both checkers

    def wrong(pool: mpkit.TaskPool, here: mpkit.Channel[str, int]) -> None:
        pool.submit(count, 5)  # type: ignore[arg-type]
        here.send(5)  # type: ignore[arg-type]
        mpkit.start(count)  # type: ignore[call-arg]
        mpkit.Pool()  # type: ignore[attr-defined]


if __name__ == "__main__":
    if len(sys.argv) > 1:
        multiprocessing.set_start_method(sys.argv[1])
    main()
