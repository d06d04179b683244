"""A server that dies at a named point: the real one, with a lake or an engine that kills the process instead.

    dying_server.py DATA_DIR receipt|range

`receipt`: where it would write one. `range`: when the second range of a job has been written and is not recorded yet.
Like `profile-export serve` it prints `listening on HOST:PORT`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from profile_export.app import Application, processes
from profile_export.config import load
from profile_export.lake.local import LocalLake
from tests.service.engines import GatedEngine, real_engine


class DyingLake(LocalLake):
    def write(self, path: str, content: bytes) -> None:
        if "receipt" in path:
            die()
        super().write(path, content)


class DyingEngine(GatedEngine):
    """It cuts finely, so that there are several ranges of few rows."""

    def __init__(self) -> None:
        super().__init__(real_engine())
        self.after_run = self._count
        self._ranges = 0

    @property
    def values_per_range(self) -> int:
        return 1_000

    async def _count(self) -> None:
        self._ranges += 1
        if self._ranges == 2:
            die()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


async def serve(data_dir: str, point: str) -> None:
    processes.configure_logs("info")
    settings = load({"data_dir": data_dir, "grpc_address": "127.0.0.1:0", "threads": "1"}, {})
    if point == "receipt":
        application = Application(settings, lake=DyingLake(Path(data_dir)))
    else:
        application = Application(settings, DyingEngine())
    await processes.run(lambda: application, settings.told())


if __name__ == "__main__":
    asyncio.run(serve(*sys.argv[1:]))
