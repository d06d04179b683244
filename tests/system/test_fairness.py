"""One tenant's queue and slow uploads delay another tenant's job by no more than the job itself takes."""

from __future__ import annotations

from pathlib import Path
from statistics import median

import grpc.aio
import pytest

from tests.service.harness import Caller
from tests.system.crowds import Exporter, busy
from tests.system.terminal import served

MOST_TIMES_AS_LONG = 2


@pytest.mark.slow
@pytest.mark.timeout(600)  # six hundred jobs, where the machine is busy
async def test_a_tiny_job_beside_two_hundred_and_a_hundred_slow_uploads_takes_at_most_twice_as_long(
    tmp_path: Path,
) -> None:
    ratios = []
    with served(tmp_path) as (_, address):
        async with grpc.aio.insecure_channel(address) as channel:
            crowd = await Exporter.of(Caller(channel, "crowd"))
            other = await Exporter.of(Caller(channel, "other"))
            await other.export()
            # The machine may be busy with other things: the best of a few tries counts.
            for _ in range(3):
                alone = median([await other.export() for _ in range(5)])
                async with busy(crowd, jobs=200, uploads=100):
                    beside = median([await other.export() for _ in range(5)])
                ratios.append(beside / alone)
                print(  # noqa: T201 - the figures
                    f"alone {alone * 1000:.0f} ms, beside {beside * 1000:.0f} ms, {ratios[-1]:.2f} times as long"
                )
                if ratios[-1] <= MOST_TIMES_AS_LONG:
                    break

    assert min(ratios) <= MOST_TIMES_AS_LONG
