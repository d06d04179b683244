"""What a piece of work may take, and looking after it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from profile_export.processes.messages import Bounds, ChildDiedError, TooExpensiveError
from profile_export.processes.process import Child

_POLL_SECONDS = 0.05
_MEGABYTE = 1_000_000
_RESERVED_BYTES = 500 * _MEGABYTE
"""What a child reserves of the system's memory without using it: libraries' data, stacks of threads."""
_UTIME, _STIME = 11, 12
"""Of `/proc/PID/stat`, counted behind the name of the program."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one piece of work may take, None: as much as it likes. `memory_bytes` is all that its process holds."""

    seconds: float | None = None
    cpu_seconds: float | None = None
    memory_bytes: int | None = None

    @property
    def bounds(self) -> Bounds:
        """What the system enforces besides: for what grows faster than anybody looks, or when nobody can look."""
        memory, cpu = self.memory_bytes, self.cpu_seconds
        return Bounds(
            memory_bytes=None if memory is None else memory + memory // 4 + _RESERVED_BYTES,
            cpu_seconds=None if cpu is None else cpu * 1.5 + 1,
        )


NO_LIMITS = Limits()


@dataclass(slots=True)
class _Watched:
    child: Child
    limits: Limits
    began: float
    cpu_before: float


class Watch:
    """Looks at children that work under limits, some times a second, and ends those that are over one."""

    def __init__(self) -> None:
        self._watched: set[int] = set()
        self._works: dict[int, _Watched] = {}
        self._timer: asyncio.TimerHandle | None = None

    @contextmanager
    def over(self, child: Child, limits: Limits) -> Iterator[None]:
        """Look after a child meanwhile.

        Raises:
            TooExpensiveError: What the work raised says that it ran into one of its limits.
        """
        if limits == NO_LIMITS:
            yield
            return
        loop = asyncio.get_running_loop()
        self._works[child.process_id] = _Watched(child, limits, loop.time(), _cpu_seconds(child.process_id))
        self._timer = self._timer or loop.call_later(_POLL_SECONDS, self._look)
        try:
            yield
        except MemoryError as error:
            if limits.memory_bytes is None:
                raise
            raise _too_much_memory(limits.memory_bytes) from error
        except ChildDiedError as died:
            if limits.cpu_seconds is not None and died.exit_code == -signal.SIGXCPU:
                raise _too_much_cpu(limits.cpu_seconds) from died
            raise
        finally:
            del self._works[child.process_id]

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(_POLL_SECONDS, self._look) if self._works else None
        for work in self._works.values():
            excess = _excess(work, loop.time())
            if excess:
                work.child.end_for(excess)


def _excess(work: _Watched, now: float) -> TooExpensiveError | None:
    limits, process_id = work.limits, work.child.process_id
    if limits.seconds is not None and now - work.began > limits.seconds:
        return TooExpensiveError(f"{limits.seconds:.0f} seconds")
    if limits.memory_bytes is not None and _resident_bytes(process_id) > limits.memory_bytes:
        return _too_much_memory(limits.memory_bytes)
    if limits.cpu_seconds is not None and _cpu_seconds(process_id) - work.cpu_before > limits.cpu_seconds:
        return _too_much_cpu(limits.cpu_seconds)
    return None


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
