"""How fast a watcher of all jobs catches up: changes from the first on, beside a bare stream of the same messages.

Both give the same bytes in the same messages to the same client. The first watcher finds nothing that was read before;
those after it, of which the median counts, are what watchers of a busy tenant meet. Every revision is checked.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable

from benchmarks.bare import REPLAY, Bare, replay_request
from benchmarks.held import WATCH_JOBS, Held, feed_request
from benchmarks.http2 import calling
from benchmarks.report import Line, percentile
from profile_export.v1 import export_service_pb2 as pb

_AT_ONCE = 8


async def measure_feed(held: Held, other: Bare, *, changes: int, runs: int) -> list[Line]:
    """Measure the replay of so many changes."""
    address = held.server.address
    begin = await _revision(address)
    await _move_jobs(held, changes // 2)
    request = feed_request(begin)
    cold, messages = await _first(address, request, begin + changes)
    read = [change.revision for one in messages for change in pb.WatchJobsResponse.FromString(one).changes]
    assert read == [*range(begin + 1, begin + changes + 1)]
    replay = replay_request(other, messages)
    await _replayed(other.address, REPLAY, replay, messages)
    ours, others = [], []
    for _ in range(runs):
        ours.append(await _replayed(address, WATCH_JOBS, request, messages))
        others.append(await _replayed(other.address, REPLAY, replay, messages))
    bare_rate = changes / percentile(others, 50)
    return [
        _line(f"WatchJobs, {changes:,} changes, the first watcher", changes / cold, bare_rate, "report"),
        _line("  those after it, p50", changes / percentile(ours, 50), bare_rate, "≥ 0.5x"),
    ]


def _line(what: str, ours: float, other: float, hold: str) -> Line:
    return Line(what, f"{ours:,.0f}/s", f"{other:,.0f}/s", f"{ours / other:.2f}x", hold)


async def _move_jobs(held: Held, jobs: int) -> None:
    """Make jobs and cancel them: two changes each."""

    async def some(number: int) -> None:
        async with calling(held.server.address) as caller:
            for _ in range(number, jobs, _AT_ONCE):
                await held.cancel(caller, await held.create(caller))

    await asyncio.gather(*(some(number) for number in range(_AT_ONCE)))


async def _revision(address: str) -> int:
    """Return the tenant's revision."""
    _, messages = await _until(address, feed_request(None), lambda message: message.list_complete)
    return pb.WatchJobsResponse.FromString(messages[-1]).revision


async def _first(address: str, request: bytes, revision: int) -> tuple[float, list[bytes]]:
    """Watch until a revision has come; return how long it took, and the messages."""
    return await _until(address, request, lambda message: message.revision == revision)


async def _until(
    address: str, request: bytes, is_last: Callable[[pb.WatchJobsResponse], bool]
) -> tuple[float, list[bytes]]:
    async with calling(address) as caller:
        begin = time.time()
        audience = caller.audience(WATCH_JOBS, request, 1)
        (stream,) = audience.streams
        for count in itertools.count(1):
            last = await audience.have(count)
            if is_last(pb.WatchJobsResponse.FromString(stream.messages[count - 1])):
                return last - begin, stream.messages
        raise AssertionError("it counts without end")


async def _replayed(address: str, method: str, request: bytes, expected: list[bytes]) -> float:
    async with calling(address) as caller:
        begin = time.time()
        audience = caller.audience(method, request, 1)
        last = await audience.have(len(expected))
        (stream,) = audience.streams
        # Ours differ in the time that they are of.
        assert [_changes(one) for one in stream.messages] == [_changes(one) for one in expected]
        return last - begin


def _changes(message: bytes) -> bytes:
    read = pb.WatchJobsResponse.FromString(message)
    read.ClearField("server_time")
    return read.SerializeToString(deterministic=True)
