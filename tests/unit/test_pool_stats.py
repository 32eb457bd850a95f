"""What a pool notes of itself."""

from __future__ import annotations

from mpkit._pool.stats import MOST_WORKERS, Recorder


def test_what_is_known_of_workers_that_have_ended_has_bounds() -> None:
    recorder = Recorder()
    recorder.worker_started(1)
    for pid in range(2, 3 * MOST_WORKERS):
        recorder.worker_started(pid)
        recorder.worker_ended(pid, "was killed by SIGKILL", False)
    stats = recorder.stats()
    assert stats.restarts == 3 * MOST_WORKERS - 2
    assert len(stats.workers) == MOST_WORKERS
    assert stats.workers[0].pid == 1, "it lives"
    assert stats.workers[-1].pid == 3 * MOST_WORKERS - 1
