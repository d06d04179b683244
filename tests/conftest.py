from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from hypothesis import settings

from tests.databases import Place, Postgres

# The same examples on every run: a red build means the change, not the dice. No deadline: machines differ.
settings.register_profile("ci", derandomize=True, deadline=None)
# For looking further by hand: pytest --hypothesis-profile=search
settings.register_profile("search", deadline=None, max_examples=2_000)
settings.load_profile("ci")

BOTH = ("sqlite", "postgresql")


@pytest.fixture(scope="session")
def postgres(testrun_uid: str, worker_id: str) -> Postgres:
    """One server for all processes of a test run."""
    # Not in pytest's own folder, which it closes to the user that PostgreSQL becomes where the tests are root.
    return Postgres(Path(tempfile.gettempdir()) / f"profile-export-{testrun_uid}", worker_id)


@pytest_asyncio.fixture(params=BOTH)
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    """Where a store can be opened, once on each database."""
    if request.param == "sqlite":
        yield tmp_path
    else:
        async with request.getfixturevalue("postgres").database(with_tables=True) as url:
            yield url


@pytest_asyncio.fixture(params=BOTH)
async def empty_place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    """As `place`, before there are tables."""
    if request.param == "sqlite":
        yield tmp_path
    else:
        async with request.getfixturevalue("postgres").database(with_tables=False) as url:
            yield url
