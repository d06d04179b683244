"""Mirrors as processes of their own: each line on stdin, a data directory, begins one; its process id is printed."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from datetime import timedelta
from pathlib import Path

from tests.mirroring import World


async def follow_for_ever(data_dir: Path) -> None:
    # A lease that is over at once keeps nobody out: only the table's compare-and-set does.
    mirror = World(data_dir, lease=timedelta(0)).mirror(str(os.getpid()))
    while True:
        await mirror.step()


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        # Forked, so that a mirror starts in no time: nothing has begun a thread here.
        child = os.fork()
        if not child:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            asyncio.run(follow_for_ever(Path(line.strip())))
        sys.stdout.write(f"{child}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
