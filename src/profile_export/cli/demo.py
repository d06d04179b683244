"""From three sources to one row per person, live, on a real server in a temporary folder."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from profile_export.cli.demo_data import (
    ReadError,
    Row,
    Sample,
    by_source,
    how_to_read,
    make_sample,
    write_lines,
)
from profile_export.cli.terminal.command import explain
from profile_export.cli.terminal.output import complain, console, count, span
from profile_export.cli.terminal.watch import facts, follow, phase_chart
from profile_export.client import (
    Client,
    ClientError,
    DatasetKind,
    Events,
    ExportJob,
    IdentityField,
    IdentityGraph,
    JobState,
    UploadFormat,
    UploadProgress,
    export_spec,
)

LOG = "server.log"
"""Its name in the folder."""

_READY = "listening on "
_START_SECONDS = 60.0
_STOP_SECONDS = 10.0


class ServerFailedError(Exception):
    """The server did not start; the sentence holds its last words."""


@asynccontextmanager
async def own_server(folder: Path) -> AsyncIterator[str]:
    """Run a server that keeps its data in a folder; yield its address, and stop it at the end."""
    command = (
        "-m",
        "profile_export",
        "serve",
        "--data-dir",
        str(folder / "data"),
        "--grpc-address",
        "127.0.0.1:0",
    )
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("PROFILE_EXPORT_")
    }
    log = folder / LOG
    with log.open("wb") as errors:
        server = await asyncio.create_subprocess_exec(
            sys.executable,
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            env=environment,
            start_new_session=True,  # a Ctrl-C is for the demo, which stops the server itself
        )
    try:
        yield await _address(server, log)
    finally:
        await _stop(server)


async def _address(server: asyncio.subprocess.Process, log: Path) -> str:
    if server.stdout is None:
        raise ServerFailedError("The server has no output to read its address from.")
    try:
        async with asyncio.timeout(_START_SECONDS):
            async for line in server.stdout:
                text = line.decode(errors="replace").strip()
                if text.startswith(_READY):
                    return text.removeprefix(_READY)
    except TimeoutError:
        raise ServerFailedError(f"The server was not ready after {_START_SECONDS:g} s.") from None
    words = await asyncio.to_thread(log.read_text, errors="replace")
    raise ServerFailedError("The server did not start: " + " ".join(words.split("\n")[-3:]).strip())


async def _stop(server: asyncio.subprocess.Process) -> None:
    if server.returncode is not None:
        return
    server.terminate()
    try:
        async with asyncio.timeout(_STOP_SECONDS):
            await server.communicate()
    except TimeoutError:
        server.kill()
        await server.wait()


INDENT = 4


@dataclass(frozen=True)
class _Source:
    name: str
    kind: DatasetKind.ValueType
    rows: list[Row]
    identities: tuple[IdentityField, ...]
    known_by: str

    @property
    def what(self) -> str:
        events = self.kind == DatasetKind.DATASET_KIND_EVENT
        return f"{count(len(self.rows))} {'events' if events else 'records'}"


def demo(
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the temporary folder, to look at the files.")
    ] = False,
) -> None:
    """Watch records of three systems become one row per person: about ten seconds, nothing to set up.

    Starts a server of its own on a free port, uploads a made-up sample, exports it, shows what came out, and
    removes everything again.

    Example: `profile-export demo --keep`
    """
    folder = Path(tempfile.mkdtemp(prefix="profile-export-"))
    begin = time.monotonic()
    screen = console()
    try:
        asyncio.run(_demo(screen, folder))
    except (ServerFailedError, ReadError, ClientError) as error:
        complain(explain(error, "its address") if isinstance(error, ClientError) else str(error))
        complain(f"The server's log: {folder / LOG}" if keep else "With --keep the server's log stays.")
        raise typer.Exit(1) from None
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
    took = f" Done in {time.monotonic() - begin:.0f} s."
    if keep:
        line = f"{took} The folder stays: {folder}"
    else:
        line = f"{took} The folder is removed again; to keep the files: profile-export demo --keep"
    screen.print("\n" + line, soft_wrap=True)


async def _demo(screen: Console, folder: Path) -> None:
    _heading(screen, 1, "A server of its own")
    async with own_server(folder) as address:
        _say(screen, f"{address}, its data in {folder}")
        async with Client(address) as client:
            await _tour(client, screen, folder)


async def _tour(client: Client, screen: Console, folder: Path) -> None:
    sample = make_sample()
    _heading(screen, 2, "Three sources that know people by different ids, and what those people did")
    await _fill(client, screen, folder, sample)

    _heading(screen, 3, "One export: one row per person, with their events")
    job = await _export(client, screen)
    _show(screen, facts(job))
    if job.state != JobState.JOB_STATE_SUCCEEDED:
        raise ServerFailedError(
            "The export did not succeed: " + "; ".join(error.message for error in job.errors)
        )
    files = await client.list_files(job.batch_id)

    crm_id = sample.shown()
    _heading(screen, 4, "The same person in three sources, and the one row")
    _show(screen, await by_source(sample.rows_of(crm_id), crm_id, files))
    _say(screen, "Bold: the value that won. The record ingested later wins, field by field.", style="dim")

    _heading(screen, 5, f"Where the {span(job.metrics.total_time.ToTimedelta())} went")
    _show(screen, phase_chart(job.metrics))

    _heading(screen, 6, "Read it yourself")
    for line in await how_to_read(files):
        screen.print(Text(" " * INDENT) + line, soft_wrap=True)


async def _fill(client: Client, screen: Console, folder: Path, sample: Sample) -> None:
    sources = _sources(sample)
    bars = Progress(
        TextColumn(" " * INDENT + "{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[known_by]}", style="dim", markup=False),
        console=screen,
        disable=not screen.is_terminal,
    )
    with bars:
        tasks = [
            bars.add_task(f"{source.name:<11}{source.what:>14}", total=None, known_by=source.known_by)
            for source in sources
        ]
        for source, task in zip(sources, tasks, strict=True):
            await _upload(client, folder, source, bars, task)
    if not screen.is_terminal:
        for source in sources:
            _say(screen, f"{source.name:<11}{source.what:>14}   {source.known_by}")


async def _upload(client: Client, folder: Path, source: _Source, bars: Progress, task: TaskID) -> None:
    path = await asyncio.to_thread(
        write_lines, folder / f"{source.name}.jsonl".replace(" ", "-").lower(), source.rows
    )
    bars.update(task, total=path.stat().st_size)
    dataset = await client.create_dataset(source.name, source.kind, identities=source.identities)
    advance = partial(_advance, bars, task)
    await client.upload(dataset.id, path, UploadFormat.UPLOAD_FORMAT_JSON_LINES, progress=advance)


async def _export(client: Client, screen: Console) -> ExportJob:
    destination = await client.create_dataset("One row per person", DatasetKind.DATASET_KIND_UNION)
    policy = await client.create_policy("One row per person", IdentityGraph.IDENTITY_GRAPH_PDG)
    answer = await client.create_job(export_spec(destination.id, policy_id=policy.id, events=Events()))
    job = await follow(client, answer.job.id, screen, indent=INDENT)
    screen.print()
    return job


def _sources(sample: Sample) -> list[_Source]:
    record = DatasetKind.DATASET_KIND_RECORD
    crm_id = IdentityField(path="crmId", namespace="CRM", primary=True)
    email = IdentityField(path="personalEmail.address", namespace="Email")
    primary_email = IdentityField(path="personalEmail.address", namespace="Email", primary=True)
    loyalty = IdentityField(path="loyalty.loyaltyId", namespace="Loyalty")
    primary_loyalty = IdentityField(path="loyalty.loyaltyId", namespace="Loyalty", primary=True)
    return [
        _Source("CRM", record, sample.crm, (crm_id, email), "crm id, email"),
        _Source("Web shop", record, sample.shop, (primary_email, loyalty), "email, loyalty id"),
        _Source("Newsletter", record, sample.newsletter, (primary_loyalty,), "loyalty id"),
        _Source(
            "Web", DatasetKind.DATASET_KIND_EVENT, sample.events, (), "device (ECID), now and then the email"
        ),
    ]


def _advance(bars: Progress, task: TaskID, progress: UploadProgress) -> None:
    bars.update(task, completed=progress.bytes)


def _heading(screen: Console, number: int, title: str) -> None:
    screen.print()
    screen.print(Text(f" {number}  ", style="bold cyan") + Text(title, style="bold"))


def _say(screen: Console, line: str, style: str = "") -> None:
    screen.print(Text(" " * INDENT + line, style=style), soft_wrap=True)


def _show(screen: Console, thing: RenderableType) -> None:
    screen.print(Padding(thing, (0, 0, 0, INDENT)))
