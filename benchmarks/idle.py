"""By how much each watcher that waits lets the memory of a server grow.

Both servers are fresh, get as many streams over as many connections, and have given each of them one message.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from benchmarks.bare import WATCH, Bare
from benchmarks.held import WATCH_JOB, Held, watch_request
from benchmarks.http2 import calling
from benchmarks.program import Program
from benchmarks.report import Line

_SETTLE_SECONDS = 1.0
_WARM_UP = 50
_KIB = 1024


async def measure_idle(held: Held, other: Bare, *, sizes: Sequence[int]) -> list[Line]:
    """Measure with each number of watchers; nothing much may have happened to the servers before."""
    address = held.server.address
    async with calling(address) as caller:
        request = watch_request(await held.create(caller))
    grown = await _growths(held.server, address, WATCH_JOB, request, sizes)
    others = await _growths(other, other.address, WATCH, b"first", sizes)
    return [_line(*one) for one in zip(sizes, grown, others, strict=True)]


def _line(watchers: int, ours: float, other: float) -> Line:
    return Line(
        f"memory of a waiting watcher, of {watchers:,}",
        f"{ours / _KIB:.1f} KiB",
        f"{other / _KIB:.1f} KiB",
        f"{ours / other:.2f}x",
        "≤ 32 KiB",
    )


async def _growths(
    process: Program, address: str, method: str, request: bytes, sizes: Sequence[int]
) -> list[float]:
    """Return by how many bytes for each watcher the process has grown, at each size."""
    await _resident(process, address, method, request, _WARM_UP)
    before = process.resident_bytes()
    return [(await _resident(process, address, method, request, size) - before) / size for size in sizes]


async def _resident(process: Program, address: str, method: str, request: bytes, watchers: int) -> int:
    async with calling(address, watchers) as caller:
        audience = caller.audience(method, request, watchers)
        await audience.have(1)
        await asyncio.sleep(_SETTLE_SECONDS)  # what else opening them set off comes to rest
        assert all(len(stream.messages) == 1 for stream in audience.streams)
        return process.resident_bytes()
