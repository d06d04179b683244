"""Watches through the client and the command line, over connections and servers that do not last."""

from __future__ import annotations

import asyncio
import json
import signal
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import ExitStack, aclosing, asynccontextmanager
from pathlib import Path
from typing import TypeVar

import pytest
from google.protobuf.message import Message

from profile_export.client import (
    Client,
    DatasetKind,
    JobState,
    WatchJobResponse,
    WatchJobsResponse,
    as_json,
    export_spec,
)
from tests.system.line import Line
from tests.system.terminal import COMMAND, Terminal, environment, served

_Message = TypeVar("_Message", bound=Message)
SERVES_ONLY = ("--workers", "0", "--connection-age-seconds", "1")
"""Jobs wait at such a server until they are cancelled, and so move when a test says so."""


async def told_by(watch: AsyncGenerator[_Message], told: list[_Message], first: asyncio.Event) -> None:
    async with aclosing(watch):
        async for message in watch:
            told.append(message)
            first.set()


@pytest.mark.slow
async def test_watches_outlive_aged_connections_cut_lines_and_a_killed_server_and_tell_nothing_twice(
    tmp_path: Path,
) -> None:
    with ExitStack() as servers:
        server, address = servers.enter_context(served(tmp_path, *SERVES_ONLY))
        async with Line(address) as line, Client(line.address) as far, asyncio.TaskGroup() as watching:
            # given a watch of a job that waits, and one of all jobs
            async with Client(address) as near:
                union = await near.create_dataset("Merged", DatasetKind.DATASET_KIND_UNION)
                job = (await near.create_job(export_spec(union.id))).job
            of_job: list[WatchJobResponse] = []
            of_jobs: list[WatchJobsResponse] = []
            began, listed = asyncio.Event(), asyncio.Event()
            ended = watching.create_task(told_by(far.watch_job(job.id, after_revision=0), of_job, began))
            following = watching.create_task(told_by(far.watch_jobs(), of_jobs, listed))
            await asyncio.gather(began.wait(), listed.wait())

            # when the server sends their connection away, the next one is cut, and then the server is killed
            await line.accepted(2)
            line.cut()
            await line.accepted(3)
            server.kill()
            server.wait()
            _, address = servers.enter_context(served(tmp_path, *SERVES_ONLY))
            line.lead_to(address)
            async with Client(address) as near:
                await near.cancel_job(job.id)
                newer = (await near.create_job(export_spec(union.id))).job
            await ended
            while not any(change.job_id == newer.id for message in of_jobs for change in message.changes):
                listed.clear()
                await listed.wait()
            following.cancel()

    # then each move was told once
    assert [move.revision for message in of_job for move in message.transitions] == [1, 2]
    assert of_job[-1].job.state == JobState.JOB_STATE_CANCELLED
    assert len(of_job) == 2
    assert [message.list_complete for message in of_jobs].count(True) == 1
    assert [(one.job_id, one.revision) for message in of_jobs for one in message.changes] == [
        (job.id, 0),
        (job.id, 2),
        (newer.id, 3),
    ]


@asynccontextmanager
async def typed(terminal: Terminal, *words: str) -> AsyncIterator[Process]:
    """A command that runs until it is interrupted, as by Ctrl-C."""
    process = await asyncio.create_subprocess_exec(
        *COMMAND,
        *words,
        "--sandbox",
        terminal.sandbox,
        stdout=PIPE,
        stderr=PIPE,
        env=environment(PROFILE_EXPORT_ADDRESS=terminal.address),
    )
    yield process
    process.send_signal(signal.SIGINT)
    _, errors = await process.communicate()
    assert (process.returncode, errors) == (130, b"")


async def line_of(process: Process) -> str:
    assert process.stdout
    return (await process.stdout.readline()).decode().rstrip()


async def test_a_watch_without_a_number_shows_every_job_that_runs(terminal: Terminal) -> None:
    union = terminal.get("datasets", "create", "Merged", "--kind", "union")
    elsewhere = terminal.get("datasets", "create", "Other", "--kind", "union")
    async with (
        typed(terminal, "jobs", "watch") as every,
        typed(terminal, "jobs", "watch", "--to", union, "--json") as some,
    ):
        assert await line_of(every) == "No job runs. Each that starts is shown here."
        async with Client(terminal.address, sandbox=terminal.sandbox) as client:
            other = (await client.create_job(export_spec(elsewhere))).job
            lines = [await line_of(every) for _ in range(3)]
            job = (await client.create_job(export_spec(union))).job
            lines += [await line_of(every) for _ in range(3)]
            records = [json.loads(await line_of(some))]
            while records[-1].get("transition", {}).get("to_state") != "JOB_STATE_SUCCEEDED":
                records.append(json.loads(await line_of(some)))
            assert records[-1]["job"] == as_json(await client.get_job(job.id))

    assert [f"job {other.id} " in line for line in lines] == [True] * 3 + [False] * 3
    assert [f"job {job.id} " in line for line in lines] == [False] * 3 + [True] * 3
    assert "NEW → PROCESSING" in lines[1]
    assert "PROCESSING → SUCCEEDED" in lines[2]
    assert "0 rows in " in lines[2]
    assert {record["job_id"] for record in records} == {str(job.id)}


def test_a_watch_of_one_job_is_not_narrowed(terminal: Terminal) -> None:
    done = terminal.type("jobs", "watch", "1", "--to", "f" * 24)

    assert done.returncode == 2
    assert "--to" in done.stderr
