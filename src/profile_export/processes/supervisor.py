"""The supervisor of all child processes, its pools of children of one kind, and a child as its parent sees it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import structlog

from profile_export.processes.messages import (
    LENGTH,
    NO_LIMITS,
    ChildDiedError,
    Done,
    Hold,
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
"""A child in reserve is started where none is idle so long after one was taken: longer than a small file takes."""
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
            # A Ctrl-C is for this process, which ends its children; one that is starting would say that it broke.
            process_group=0,
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
        """Whether its process is there, and nobody has ended it: the system may say so later."""
        return self._process.returncode is None and self._killed_for is None

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


class WarmChildren:
    """Children for one kind of work. Where there may be another, one waits with its libraries loaded.

    Args:
        supervisor: Where they come from.
        most: How many of them may wait for work; beyond these, a child ends with its work.
        ready: The request that a child answers before it waits, which loads its libraries; None: children start with
            their work, and none is started in reserve.
        reserve_after: How many seconds after one was taken another is started in reserve, if none waits then.
        niceness: How far they stand back behind others that want a processor, 0 to 19.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        *,
        most: int,
        ready: Load | Hold | None,
        reserve_after: float,
        niceness: int = 0,
    ) -> None:
        self._supervisor, self._most, self._ready = supervisor, most, ready
        self._reserve_after, self._niceness = reserve_after, niceness
        self._idle: list[Child] = []
        self._all: set[Child] = set()
        self._closed = False
        self._warming: asyncio.Task[None] | None = None

    @property
    def all(self) -> Collection[Child]:
        """All of them, at work or not."""
        return self._all

    @asynccontextmanager
    async def one(self, cleared: Callable[[Child], Awaitable[bool]] | None = None) -> AsyncIterator[Child]:
        """Take a child for the block. Leaving it while the child still works ends the child.

        Args:
            cleared: Clears a child for the next one who takes it, and says whether it can be used again; None: there is
                nothing to clear.

        Raises:
            ChildDiedError: No child can be started.
            OSError: The system gives no further process.
        """
        try:
            child = await self._taken()
        except asyncio.CancelledError:
            # The child that was starting has ended with this. Callers who never wait long enough would never have one.
            self.warm()
            raise
        # Also where this one is done by then and another has taken its place: the next may be somebody else's.
        asyncio.get_running_loop().call_later(self._reserve_after, self.warm)
        try:
            yield child
        finally:
            await asyncio.shield(self._given_back(child, cleared))

    def warm(self) -> None:
        """Begin to start a child in reserve, if none waits and there may be another."""
        is_warming = self._warming is not None and not self._warming.done()
        may_wait = not self._idle and len(self._all) < self._most
        if self._ready is not None and may_wait and not is_warming and not self._closed:
            self._warming = asyncio.create_task(self._warmed())

    async def close(self) -> None:
        """Kill all, whatever they do. None will wait for work again."""
        self._closed = True
        if self._warming is not None:
            self._warming.cancel()
            with suppress(asyncio.CancelledError):
                await self._warming
        await asyncio.gather(*(self._ended(child) for child in tuple(self._all)))

    async def start(self) -> None:
        """Start a child in reserve, and return when it waits.

        Raises:
            ChildDiedError: It ended.
            OSError: The system gives no further process.
        """
        # Those that have worked are taken first: they remember what they have compiled.
        self._idle.insert(0, await self._started())

    async def _taken(self) -> Child:
        if not self._idle and self._warming is not None:
            # However it ends: who finds no child then starts one, and gets the error.
            await asyncio.wait([self._warming])
        while self._idle:
            child = self._idle.pop()
            if child.alive:
                return child
            # It died while it was idle, for whatever reason: that must not cost a piece of work.
            await self._ended(child)
        return await self._started()

    async def _given_back(self, child: Child, cleared: Callable[[Child], Awaitable[bool]] | None) -> None:
        can_be_used = not child.busy and child.alive and (cleared is None or await cleared(child))
        if can_be_used and len(self._idle) < self._most and not self._closed:
            self._idle.append(child)
        else:
            await self._ended(child)
            self.warm()

    async def _started(self) -> Child:
        child = await self._supervisor.child(self._niceness)
        self._all.add(child)
        try:
            if self._ready is not None:
                await child.ask(self._ready)
        except BaseException:
            await self._ended(child)
            raise
        return child

    async def _ended(self, child: Child) -> None:
        self._all.discard(child)
        await self._supervisor.end(child)

    async def _warmed(self) -> None:
        # Nobody gets this task's error: see `_taken`.
        with suppress(ChildDiedError, OSError):
            await self.start()


class Pool:
    """Children that take turns at one kind of work.

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
        self._limits = limits
        self._turns = FairTurns(most)
        ready = None if warm_for is None else Load(warm_for)
        self._children = WarmChildren(
            supervisor, most=most, ready=ready, reserve_after=_RESERVE_AFTER_SECONDS, niceness=niceness
        )
        self._closed = False

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
            if self._closed:
                raise ChildDiedError
            async with self._children.one() as child:
                result: _Result = await child.ask(Run(work, task, limits), limits=limits)
                return result

    def warm(self) -> None:
        """Begin to start a child in reserve, if none waits and there may be another."""
        self._children.warm()

    async def close(self) -> None:
        """Kill all children of the pool, whatever they do; there will be none again."""
        self._closed = True
        await self._children.close()


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
