"""Exchange large messages while processes are killed: the program that `test_channel_soak` runs.

``python -m tests.fault.channel_soak <start method> <messages>`` prints what it did and
what this process has open before and after, as JSON.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import multiprocessing
import random
import sys
import threading
import zlib
from typing import Any

from mpkit import (
    BrokenChannel,
    Channel,
    ChannelClosed,
    EndOfChannel,
    PeerDied,
    channel,
    wait,
)
from tests.support import PATIENCE, possessions

End = Channel[Any, Any]


def exchange(end: End, report: End) -> None:
    """Send and receive until the other end is gone, and report each message and the end."""
    sending = threading.Thread(target=send_all, args=(end, random.randrange(1000)))
    sending.start()
    how = "EndOfChannel"
    with report:
        try:
            for expected, (number, check, data) in enumerate(end):
                assert (number, check) == (expected, zlib.crc32(data)), "lost, twice or damaged"
                report.send(expected)
        except PeerDied:
            how = "PeerDied"
        end.close()
        sending.join()
        report.send(how)


def send_all(end: End, seed: int) -> None:
    chance = random.Random(seed)
    with contextlib.suppress(BrokenChannel, ChannelClosed):
        for number in itertools.count():
            size = chance.choice([70_000, 300_000, 900_000, 1_100_000, 2_000_000])
            data = bytearray([number % 251]) * size
            end.send((number, zlib.crc32(data), data))


def live(chance: random.Random) -> int:
    """Have two exchange until one is killed; return how many messages arrived.

    Both are processes, or one of them is this very process.
    """
    ends, reports = channel(), [channel() for _ in range(2)]
    kinds: list[Any] = [multiprocessing.Process, chance.choice([multiprocessing.Process, None])]
    mine = [report for report, _ in reports]
    players = []
    for kind, end, (_, theirs) in zip(kinds, ends, reports):
        player = (kind or threading.Thread)(target=exchange, args=(end, theirs))
        player.start()
        players.append(player)
    victim = players[chance.randrange(1 if None in kinds else 2)]
    when, arrived, last, listening = chance.randrange(1, 30), 0, {}, list(mine)
    while listening:
        for report in wait(*listening, timeout=PATIENCE):
            try:
                last[report] = report.recv()
            except EndOfChannel:
                listening.remove(report)
                continue
            arrived += isinstance(last[report], int)
            if arrived == when:
                victim.kill()
    for report, player in zip(mine, players):
        report.close()
        player.join(PATIENCE)
        if player is not victim:
            assert last[report] == "PeerDied", last[report]
    return arrived


def main(method: str, messages: int) -> None:
    multiprocessing.set_start_method(method)
    chance = random.Random(4)
    for _ in range(3):  # whatever is started or imported once
        live(chance)
    before = possessions()
    arrived = kills = 0
    while arrived < messages:
        arrived += live(chance)
        kills += 1
    after = possessions()
    print(json.dumps({"arrived": arrived, "kills": kills, "before": before, "after": after}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
