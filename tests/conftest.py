from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from shutil import copyfile

# Before grpc is loaded: else it wakes up in each process that a test forks, and may end it before the program begins.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import pytest
import pytest_asyncio
import structlog
from hypothesis import settings

from profile_export.store.db.database import migrate
from profile_export.store.db.sqlite import SqliteFile
from tests.databases import Place, Postgres, compile_statements_once

# The same examples on every run: a red build means the change, not the dice. No deadline: machines differ.
settings.register_profile("ci", derandomize=True, deadline=None)
# For looking further by hand: pytest --hypothesis-profile=search
settings.register_profile("search", deadline=None, max_examples=2_000)
# Half as many: for `make test`, which runs before each commit.
settings.register_profile("quick", settings.get_profile("ci"), max_examples=50)
settings.load_profile("ci")

# Plain lines: drawn for people, a single stack trace takes a quarter of a second.
structlog.configure(
    processors=[structlog.processors.format_exc_info, structlog.processors.KeyValueRenderer()]
)
compile_statements_once()

# The second one is for the whole run: each of its hundreds of tests makes a database.
BOTH = ("sqlite", pytest.param("postgresql", marks=pytest.mark.slow))
# Beside the unit tests. What the others run through, these run through as well.
TRACED = {
    "contract": """
        belonging compaction documents engine engine_against_merge engine_parts engine_shapes expiries failures
        ingest_csv ingest_formats ingest_json_array ingest_json_lines ingest_parquet ingest_parquet_writers
        ingest_readings ingest_refusals ingest_rules keeper kept_graphs mirror_table processes resolution rules trash
    """,
    "service": """
        batches datasets estimates invalid_requests jobs limits page_tokens policies postgresql receipts schemas
        segments server_shell tenancy uploads upserts watch watch_jobs
    """,
    "system": "cli cli_answers cli_catalog cli_db cli_exports cli_profiles cli_uploads cli_verify demo",
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        room, name = item.path.parent.name, item.path.stem.removeprefix("test_")
        if room == "unit" or name in TRACED.get(room, "").split():
            item.add_marker(pytest.mark.traced)


@pytest.fixture(scope="session")
def postgres(testrun_uid: str, worker_id: str) -> Postgres:
    """One server for all processes of a test run."""
    # Not in pytest's own folder, which it closes to the user that PostgreSQL becomes where the tests are root.
    return Postgres(Path(tempfile.gettempdir()) / f"profile-export-{testrun_uid}", worker_id)


@pytest_asyncio.fixture(scope="session")
async def file_with_tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file to copy, which is ten times faster than to make the tables anew."""
    folder = tmp_path_factory.mktemp("with_tables")
    await migrate(SqliteFile(folder).migrator)
    return folder / "store.sqlite"


@pytest_asyncio.fixture(params=BOTH)
async def place(
    request: pytest.FixtureRequest, tmp_path: Path, file_with_tables: Path
) -> AsyncIterator[Place]:
    """Where a store can be opened, once on each database."""
    if request.param == "sqlite":
        copyfile(file_with_tables, tmp_path / file_with_tables.name)
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
