"""The supervisor of all child processes, its pools of children of one kind, and a child as its parent sees it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import structlog

from profile_export.processes.messages import (
    LENGTH,
    NO_LIMITS,
    ChildDiedError,
    Done,
    Limits,
    Load,
    Raised,
    Run,
    Said,
    TooExpensiveError,
    decode,
    encode,
)
from profile_export.processes.turns import FairTurns, Whose

OnSaid = Callable[[Any], None]
_Task = TypeVar("_Task")
_Result = TypeVar("_Result")
_RESERVE_AFTER_SECONDS = 0.25
"""A child in reserve is started where the last idle one is at work for longer than a small file takes."""
# Strangers' work has a hard limit of memory, which counts all that an allocator reserves: the default one of Arrow
# reserves a gigabyte at once.
_ALLOCATOR = {"ARROW_DEFAULT_MEMORY_POOL": "system"}
_REPORT_BYTES, _MOST_REPORTS, _LAST_WORDS_SECONDS = 4_096, 20, 1
_POLL_SECONDS = 0.05
"""How often a child that works under limits is looked at."""
_MEGABYTE = 1_000_000
_UTIME, _STIME = 11, 12
"""The places of two fields of `/proc/PID/stat`, counted behind the name of the program."""
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
        """Start a child and wait until it listens.

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

    async def ask(self, request: object, on_said: OnSaid | None = None, limits: Limits = NO_LIMITS) -> Any:
        """Send a request and wait for its answer.

        Raises:
            Exception: What the work raised.
            ChildDiedError: The child is gone.
            TooExpensiveError: It took more than `limits` allow.
        """
        if limits == NO_LIMITS:
            return await self._asked(request, on_said)
        looking = asyncio.create_task(self._end_over(limits, _cpu_seconds(self.process_id)))
        try:
            return await self._asked(request, on_said)
        except MemoryError as error:
            if limits.memory_bytes is None:
                raise
            raise _too_much_memory(limits.memory_bytes) from error
        except ChildDiedError as died:
            if limits.cpu_seconds is not None and died.exit_code == -signal.SIGXCPU:
                raise _too_much_cpu(limits.cpu_seconds) from died
            raise
        finally:
            looking.cancel()

    async def _asked(self, request: object, on_said: OnSaid | None) -> Any:
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

    async def _end_over(self, limits: Limits, cpu_before: float) -> None:
        """Look at the process some times a second, and end it when it is over a limit."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        while True:
            await asyncio.sleep(_POLL_SECONDS)
            seconds, cpu_seconds, memory_bytes = limits.seconds, limits.cpu_seconds, limits.memory_bytes
            if seconds is not None and loop.time() - began > seconds:
                self.end_for(TooExpensiveError(f"{seconds:.0f} seconds"))
            elif memory_bytes is not None and _resident_bytes(self.process_id) > memory_bytes:
                self.end_for(_too_much_memory(memory_bytes))
            elif cpu_seconds is not None and _cpu_seconds(self.process_id) - cpu_before > cpu_seconds:
                self.end_for(_too_much_cpu(cpu_seconds))

    @property
    def process_id(self) -> int:
        """The process id."""
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


def _too_much_memory(limit: int) -> TooExpensiveError:
    return TooExpensiveError(f"{limit // _MEGABYTE} MB of memory")


def _too_much_cpu(limit: float) -> TooExpensiveError:
    return TooExpensiveError(f"{limit:.0f} seconds of processor time")


def _resident_bytes(process_id: int) -> int:
    """Return how much memory a process holds; 0 where the system does not say, or it is gone."""
    try:
        return int(Path(f"/proc/{process_id}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
    except (OSError, IndexError):
        return 0


def _cpu_seconds(process_id: int) -> float:
    """Return how much processor time a process has used; 0 where the system does not say, or it is gone."""
    try:
        fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[_UTIME]) + int(fields[_STIME])) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError):
        return 0.0


class Pool:
    """Children for one kind of work.

    Args:
        supervisor: Where they come from.
        most: How many there are at most.
        warm_for: Work to come, whose libraries they load in advance; None: they start with their first task.
        niceness: How far they stand back behind others that want a processor, 0 to 19.
        limits: What a piece of work may take of which nothing else is said.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        *,
        most: int = 1,
        warm_for: Callable[[Any], object] | None = None,
        niceness: int = 0,
        limits: Limits = NO_LIMITS,
    ) -> None:
        self._supervisor, self._limits = supervisor, limits
        self._most, self._warm_for, self._niceness = most, warm_for, niceness
        self._turns = FairTurns(most)
        self._idle: list[Child] = []
        self._children: set[Child] = set()
        self._closed = False
        self._warming: asyncio.Task[None] | None = None

    async def run(
        self,
        work: Callable[[_Task], _Result],
        task: _Task,
        whose: Whose = None,
        limits: Limits | None = None,
    ) -> _Result:
        """Do `work(task)` in a child, which imports the function by its name.

        Waits for its turn, as `FairTurns` has it. A caller that is cancelled ends the work.

        Raises:
            Exception: Whatever the function raises.
            ChildDiedError: The child ended; the next task gets a new one.
            TooExpensiveError: It took more than `limits` allow, or where there are none, those of the pool.
        """
        limits = limits or self._limits
        async with self._turns.taken(whose):
            child = await self._taken()
            reserve = self._reserve_later()
            try:
                result: _Result = await child.ask(Run(work, task, limits), limits=limits)
                return result
            finally:
                if reserve is not None:
                    reserve.cancel()
                await asyncio.shield(self._given_back(child))

    @property
    def is_busy(self) -> bool:
        """Whether a child is at work."""
        return any(child.busy for child in self._children)

    async def close(self) -> None:
        """Kill all children of the pool, whatever they do."""
        self._closed = True
        await asyncio.gather(*(self._supervisor.end(child) for child in tuple(self._children)))

    def warm(self) -> None:
        """Begin to start a child, if none is idle and there may be another."""
        is_warming = self._warming is not None and not self._warming.done()
        if self._warm_for is not None and self._may_reserve and not is_warming:
            self._warming = asyncio.create_task(self._warmed(self._warm_for))

    @property
    def _may_reserve(self) -> bool:
        return not self._idle and len(self._children) < self._most

    def _reserve_later(self) -> asyncio.TimerHandle | None:
        if self._warm_for is None or not self._may_reserve:
            return None
        return asyncio.get_running_loop().call_later(_RESERVE_AFTER_SECONDS, self.warm)

    async def _taken(self) -> Child:
        if not self._idle and self._warming is not None:
            await asyncio.shield(self._warming)
        while self._idle:
            child = self._idle.pop()
            if child.alive and not self._closed:
                return child
            # It died while it was idle, for whatever reason: that must not cost a piece of work.
            await self._ended(child)
        return await self._started()

    async def _given_back(self, child: Child) -> None:
        if child.busy or not child.alive:
            await self._ended(child)
            self.warm()
        else:
            self._idle.append(child)

    async def _ended(self, child: Child) -> None:
        self._children.discard(child)
        await self._supervisor.end(child)

    async def _started(self) -> Child:
        if self._closed:
            raise ChildDiedError
        child = await self._supervisor.child(self._niceness)
        self._children.add(child)
        return child

    async def _warmed(self, work: Callable[[Any], object]) -> None:
        # Nobody waits for this one: who needs a child and finds none sees the error for himself.
        with suppress(ChildDiedError, OSError):
            child = await self._started()
            try:
                await child.ask(Load(work))
            finally:
                await self._given_back(child)


class Supervisor:
    """All children of this process."""

    def __init__(self) -> None:
        self._children: set[Child] = set()
        self._closed = False

    async def child(self, niceness: int = 0) -> Child:
        """Start a child.

        Raises:
            ChildDiedError: It ended at once, or the supervisor is closed.
            OSError: The system gives no further process.
        """
        self._check_open()
        child = await Child.started(niceness)
        self._children.add(child)
        if self._closed:
            await self.end(child)
        self._check_open()
        return child

    async def end(self, child: Child) -> None:
        """Kill a child, whatever it does."""
        await child.kill()
        self._children.discard(child)

    async def close(self) -> None:
        """Kill every child, whatever it does; there will be none again."""
        self._closed = True
        await asyncio.gather(*(self.end(child) for child in tuple(self._children)))

    def _check_open(self) -> None:
        if self._closed:
            raise ChildDiedError
