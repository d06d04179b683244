"""A server that dies at a receipt: the real one, with a lake that kills the process instead of writing it.

    dying_server.py DATA_DIR

Like `profile-export serve` it prints `listening on HOST:PORT`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from profile_export.app import Application
from profile_export.config import load
from profile_export.lake.local import LocalLake


class DyingLake(LocalLake):
    def write(self, path: str, content: bytes) -> None:  # noqa: ARG002 - the lake's signature
        os.kill(os.getpid(), signal.SIGKILL)


async def serve(data_dir: str) -> None:
    settings = load({"data_dir": data_dir, "grpc_address": "127.0.0.1:0", "threads": "1"}, {})
    application = Application(settings, lake=DyingLake(Path(data_dir)))
    await application.start()
    sys.stdout.write(f"listening on 127.0.0.1:{application.port}\n")
    sys.stdout.flush()
    await asyncio.wait(application.workers)


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
