"""A program in a process of its own, from its first line on stdout to its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

_STOP_SECONDS = 20


class ServerDiedError(Exception):
    """The server is gone, or never came."""


@dataclass(frozen=True)
class Program:
    """A running program."""

    process: asyncio.subprocess.Process
    log: Path

    def check(self) -> None:
        """Raise ServerDiedError if it is gone."""
        if self.process.returncode is not None:
            raise ServerDiedError(f"ended with {self.process.returncode}:\n{_last_words(self.log)}")

    async def line(self) -> str:
        """Return the next line that it says.

        Raises:
            ServerDiedError: There is none.
        """
        assert self.process.stdout is not None
        line = (await self.process.stdout.readline()).decode().strip()
        if not line:
            raise ServerDiedError(f"did not start:\n{_last_words(self.log)}")
        return line

    def peak_bytes(self) -> int:
        """Return the most memory that it has held, without its children."""
        return self._memory("VmHWM")

    def resident_bytes(self) -> int:
        """Return the memory that it holds now, without its children."""
        return self._memory("VmRSS")

    def _memory(self, which: str) -> int:
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{which}:")), 0)


@asynccontextmanager
async def program(
    command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
) -> AsyncIterator[Program]:
    """Run a program, with what it says on stderr in a log; None is the environment of this process."""
    with log.open("ab") as errors:
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=errors, env=environment
        )
    try:
        yield Program(process, log)
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                async with asyncio.timeout(_STOP_SECONDS):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()


def _last_words(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-15:])
