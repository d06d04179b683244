"""The real server, which can be asked how late its loop was and what it holds.

    python -m tests.hostile.attacked_server DATA_DIR [DATABASE_URL]

Like `profile-export serve` it prints `listening on HOST:PORT`. Then it answers each line of its input with one:

`lag`   how late its loop was at the most since it was asked last, in milliseconds, and how much of that time the
        process had a processor: `LATE BUSY`
`size`  what it holds, as JSON: memory without its children, open files, threads, children, tasks
`hold`  the next attempt waits before its first range, until `go on`; those that come after it do not
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

from profile_export.app import Application, processes
from profile_export.app.processes import configure_logs
from profile_export.config import load
from tests.service.conftest import settings_for
from tests.service.engines import Gate, GatedEngine, real_engine

TICK_SECONDS = 0.005


class Lag:
    """How late the loop comes to what is due, at the most since the last reading."""

    def __init__(self) -> None:
        self._late, self._busy = 0.0, 0.0

    async def measure(self) -> None:
        while True:
            due, used = time.monotonic() + TICK_SECONDS, time.process_time()
            await asyncio.sleep(TICK_SECONDS)
            late = time.monotonic() - due
            if late > self._late:
                self._late, self._busy = late, time.process_time() - used

    async def read(self) -> str:
        await asyncio.sleep(2 * TICK_SECONDS)  # what kept this line waiting is measured by then
        told = f"{self._late * 1_000:.0f} {self._busy * 1_000:.0f}"
        self._late = 0.0
        return told


class FirstOnly(Gate):
    """A gate at which nobody waits but the first."""

    async def __call__(self) -> None:
        if not self.reached.is_set():
            await super().__call__()


def size() -> str:
    gc.collect()
    own = Path("/proc/self")
    return json.dumps(
        {
            "bytes": int((own / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"),
            "files": len(list((own / "fd").iterdir())),
            "threads": len(list((own / "task").iterdir())),
            "children": sum(_parent(process) == os.getpid() for process in own.parent.glob("[0-9]*")),
            "tasks": len(asyncio.all_tasks()),
        }
    )


def _parent(process: Path) -> int:
    with suppress(OSError):  # it has just ended
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    return 0


async def answer(lines: asyncio.StreamReader, lag: Lag, engine: GatedEngine) -> None:
    gate = FirstOnly()
    while line := (await lines.readline()).decode().strip():
        match line:
            case "lag":
                told = await lag.read()
            case "size":
                told = size()
            case "hold":
                gate = FirstOnly()
                engine.before_run = gate
                told = line
            case _:
                gate.passed.set()
                told = line
        print(told, flush=True)  # noqa: T201 - as said
    os.kill(os.getpid(), signal.SIGTERM)  # whoever asked is gone


async def serve(data_dir: str, database_url: str | None = None) -> None:
    options = {**settings_for(Path(data_dir)), "database_url": database_url, "workers": "2"}
    settings = load(options, {})
    configure_logs(settings.log_level)
    engine = GatedEngine(real_engine())
    lag, lines = Lag(), asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    beside = [asyncio.create_task(lag.measure()), asyncio.create_task(answer(lines, lag, engine))]
    await processes.run(lambda: Application(settings, engine), settings.told())
    for task in beside:
        task.cancel()


if __name__ == "__main__":
    asyncio.run(serve(*sys.argv[1:]))
