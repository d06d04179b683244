"""One tenant's queue and slow uploads delay another tenant's job by no more than the job itself takes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import pytest

from tests.system.crowds import BUSY, exporter
from tests.system.terminal import served

MOST_TIMES_AS_LONG = 2
JOBS = 10


@contextmanager
def crowded(address: str, jobs: int, uploads: int) -> Iterator[None]:
    words = (sys.executable, "-m", "tests.system.crowds", address, str(jobs), str(uploads))
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as crowd:
        try:
            assert crowd.stdout is not None
            assert crowd.stdout.readline().strip() == BUSY
            yield
        finally:
            crowd.terminate()


@pytest.mark.slow
@pytest.mark.timed
@pytest.mark.timeout(300)
async def test_a_tiny_job_beside_two_hundred_and_a_hundred_slow_uploads_takes_at_most_twice_as_long(
    tmp_path: Path,
) -> None:
    with served(tmp_path) as (_, address):
        async with exporter(address, "other") as other:
            await other.export()
            alone = median([await other.export() for _ in range(JOBS)])
            with crowded(address, jobs=200, uploads=100):
                beside = median([await other.export() for _ in range(JOBS)])

    figures = (
        f"alone {alone * 1000:.0f} ms, beside {beside * 1000:.0f} ms, {beside / alone:.2f} times as long"
    )
    print(figures)  # noqa: T201 - for who looks
    assert beside <= MOST_TIMES_AS_LONG * alone, figures
