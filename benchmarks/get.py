"""What looking a job up costs, beside the least that it can cost.

That is a bare server which reads the job's row by its key, through the same store and from the same file, and answers
the same bytes, which the caller has brought along. Runs of calls take turns; every answer is checked.
"""

from __future__ import annotations

import asyncio
import time

from benchmarks.bare import GET as BARE_GET
from benchmarks.bare import Bare, get_request
from benchmarks.held import GET, Held
from benchmarks.http2 import Caller, calling
from benchmarks.report import Line, percentile
from profile_export.v1 import export_service_pb2 as pb

_MANY = 32


async def measure_get(held: Held, other: Bare, *, calls: int, runs: int) -> list[Line]:
    """Measure runs of so many calls, one at a time and many, in turns with those of the bare server."""
    async with calling(held.server.address) as caller, calling(other.address) as bare_caller:
        job_id = await held.create(caller)
        # A finished job is answered with the same bytes each time.
        await held.cancel(caller, job_id)
        request = pb.GetJobRequest(job_id=job_id).SerializeToString()
        answer = await caller.answer(GET, request)
        bare_request = get_request(job_id, answer)
        lines = []
        for at_once in (1, _MANY):
            ours, others = [], []
            for _ in range(runs):
                ours.append(await _rate(caller, GET, request, answer, calls, at_once))
                others.append(await _rate(bare_caller, BARE_GET, bare_request, answer, calls, at_once))
            lines.append(_line(f"GetJob, {at_once} at a time", ours, others))
    return lines


def _line(what: str, ours: list[float], others: list[float]) -> Line:
    mine, other = percentile(ours, 50), percentile(others, 50)
    return Line(what, f"{mine:,.0f}/s", f"{other:,.0f}/s", f"{mine / other:.2f}x", "≥ 0.8x")


async def _rate(
    caller: Caller, method: str, request: bytes, answer: bytes, calls: int, at_once: int
) -> float:
    async def some(number: int) -> None:
        for _ in range(number, calls, at_once):
            assert await caller.answer(method, request) == answer

    begin = time.perf_counter()
    await asyncio.gather(*(some(number) for number in range(at_once)))
    return calls / (time.perf_counter() - begin)
