"""A real server of the demo's own: another process, on a free port, in a temporary folder."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

LOG = "server.log"
"""Its name in the folder."""

_READY = "listening on "
_START_SECONDS = 60.0
_STOP_SECONDS = 10.0


class ServerFailedError(Exception):
    """The server did not start; the sentence holds its last words."""


@asynccontextmanager
async def own_server(folder: Path) -> AsyncIterator[str]:
    """Run a server that keeps its data in a folder; yield its address, and stop it at the end."""
    command = (
        "-m",
        "profile_export",
        "serve",
        "--data-dir",
        str(folder / "data"),
        "--grpc-address",
        "127.0.0.1:0",
    )
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("PROFILE_EXPORT_")
    }
    log = folder / LOG
    with log.open("wb") as errors:
        server = await asyncio.create_subprocess_exec(
            sys.executable,
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            env=environment,
            start_new_session=True,  # a Ctrl-C is for the demo, which stops the server itself
        )
    try:
        yield await _address(server, log)
    finally:
        await _stop(server)


async def _address(server: asyncio.subprocess.Process, log: Path) -> str:
    if server.stdout is None:
        raise ServerFailedError("The server has no output to read its address from.")
    try:
        async with asyncio.timeout(_START_SECONDS):
            async for line in server.stdout:
                text = line.decode(errors="replace").strip()
                if text.startswith(_READY):
                    return text.removeprefix(_READY)
    except TimeoutError:
        raise ServerFailedError(f"The server was not ready after {_START_SECONDS:g} s.") from None
    words = await asyncio.to_thread(log.read_text, errors="replace")
    raise ServerFailedError("The server did not start: " + " ".join(words.split("\n")[-3:]).strip())


async def _stop(server: asyncio.subprocess.Process) -> None:
    if server.returncode is not None:
        return
    server.terminate()
    try:
        async with asyncio.timeout(_STOP_SECONDS):
            await server.communicate()
    except TimeoutError:
        server.kill()
        await server.wait()
