"""A child process as its parent sees it."""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from typing import Any

import structlog

from profile_export.processes.messages import LENGTH, ChildDiedError, Done, Raised, Said, decode, encode

OnSaid = Callable[[Any], None]
# Strangers' work has a hard limit of memory, which counts all that an allocator reserves: the default one of Arrow
# reserves a gigabyte at once.
_ALLOCATOR = {"ARROW_DEFAULT_MEMORY_POOL": "system"}
_REPORT_BYTES, _MOST_REPORTS, _LAST_WORDS_SECONDS = 4_096, 20, 1
_log = structlog.get_logger(__name__)


class Child:
    """A child process. `busy` while it works on a request: then only killing it stops it."""

    def __init__(self, process: Process) -> None:
        if process.stdin is None or process.stdout is None or process.stderr is None:
            message = "the process has no pipes"
            raise ValueError(message)
        self._process, self._stream_in, self._stream_out = process, process.stdin, process.stdout
        self._reporting = asyncio.create_task(_report(process.stderr, process.pid))
        self.busy = False
        self._killed_for: Exception | None = None

    @classmethod
    async def started(cls, niceness: int = 0) -> Child:
        """Start one and wait until it listens.

        Raises:
            ChildDiedError: It ended at once.
            OSError: The system gives no further process.
        """
        # A fresh interpreter, since a process forked after gRPC has started hangs; and a module of its own, since the
        # parent's main module would bring half the server along.
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            "profile_export.processes.child",
            str(niceness),
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            env={**os.environ, **_ALLOCATOR, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        child = cls(process)
        try:
            await child._answer(_ignore)
        except BaseException:
            await child.kill()
            raise
        return child

    async def ask(self, request: object, on_said: OnSaid | None = None) -> Any:
        """Send a request and wait for its answer.

        Raises:
            Exception: What the work raised.
            ChildDiedError: The child is gone.
            TooExpensiveError: It was killed for that.
        """
        self.busy = True
        encoded = encode(request)
        with suppress(ConnectionError):  # its end is noticed where the answer is read
            self._stream_in.write(encoded)
            await self._stream_in.drain()
        answer = await self._answer(on_said or _ignore)
        self.busy = False
        if isinstance(answer, Raised):
            raise answer.error
        return answer.result

    @property
    def process_id(self) -> int:
        """Of the system."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether its process is there."""
        return self._process.returncode is None

    def end_for(self, reason: Exception) -> None:
        """Kill it, and tell whoever waits for it the reason."""
        self._killed_for = self._killed_for or reason
        self._signal_end()

    async def kill(self) -> None:
        """End it at once, whatever it does."""
        self._signal_end()
        await self._process.wait()

    def _signal_end(self) -> None:
        with suppress(ProcessLookupError):
            self._process.kill()

    async def _answer(self, on_said: OnSaid) -> Done | Raised:
        stream = self._stream_out
        while True:
            try:
                (length,) = LENGTH.unpack(await stream.readexactly(LENGTH.size))
                message = decode(await stream.readexactly(length))
            except asyncio.IncompleteReadError:
                code = await self._process.wait()
                await asyncio.wait([self._reporting], timeout=_LAST_WORDS_SECONDS)
                raise (self._killed_for or ChildDiedError(code)) from None
            if not isinstance(message, Said):
                return message  # type: ignore[no-any-return]  # nothing else is sent
            on_said(message.what)


async def _report(said: asyncio.StreamReader, process_id: int) -> None:
    """Log what a library says on its way out as lines of ours, and no more than a stranger may make it say."""
    for number in count():
        text = await said.read(_REPORT_BYTES)
        if not text:
            return
        if number < _MOST_REPORTS:
            _log.warning("child_said", process_id=process_id, text=text.decode(errors="replace").strip())


def _ignore(_said: object) -> None:
    pass
