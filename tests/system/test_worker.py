"""Worker processes beside a server that runs no job itself, over one PostgreSQL database."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.databases import Postgres
from tests.system.terminal import Terminal, served, started


@pytest_asyncio.fixture
async def url(postgres: Postgres) -> AsyncIterator[str]:
    async with postgres.database(with_tables=False) as made:
        yield made


@pytest.mark.slow
async def test_a_worker_runs_the_jobs_of_a_server_that_runs_none_and_stops_when_told(
    tmp_path: Path, url: str
) -> None:
    people = tmp_path / "crm.jsonl"
    people.write_text("".join(f'{{"crmId": "C-{number}"}}\n' for number in range(3)))

    def scenario() -> None:
        # given a server without workers, whose job nobody runs
        with served(tmp_path, "--database-url", url, "--workers", "0") as (_, address):
            terminal = Terminal(address, "dev")
            crm = terminal.get("datasets", "create", "CRM", "--kind", "record", "--primary", "crmId=CRM")
            terminal.get("datasets", "upload", crm, people)
            union = terminal.get("datasets", "create", "Merged", "--kind", "union")
            job = terminal.get("jobs", "create", "--to", union)
            assert "NEW" in terminal.get("jobs", "show", job)

            # when a worker comes
            options = ("--data-dir", str(tmp_path / "data"), "--database-url", url, "--threads", "1")
            with started(("worker", *options), tmp_path / "worker.log") as (worker, line):
                assert line == "working", (tmp_path / "worker.log").read_text()
                # then the job is done, the server tells it, and the worker goes when it is told to
                assert "SUCCEEDED" in terminal.get("jobs", "watch", job)
                worker.send_signal(signal.SIGTERM)
                assert worker.wait(30) == 0

    await asyncio.to_thread(scenario)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--data-dir", "x"), "--database-url (PROFILE_EXPORT_DATABASE_URL) is required"),
        (("--database-url", "postgresql://h/d"), "--data-dir (PROFILE_EXPORT_DATA_DIR) is required"),
        (
            ("--data-dir", "x", "--database-url", "postgresql://127.0.0.1:1/d"),
            "PostgreSQL cannot be reached",
        ),
    ],
)
def test_a_worker_that_cannot_start_says_why_in_one_line(options: tuple[str, ...], line: str) -> None:
    done = Terminal("", "").type("worker", *options)

    assert (done.returncode, done.stdout) == (2, "")
    [told] = done.stderr.splitlines()
    assert line in told
