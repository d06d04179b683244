"""From three sources to one row per person, live, on a real server in a temporary folder."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import unquote, urlsplit

import typer
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from profile_export.cli.demo_sample import Row, Sample, make_sample
from profile_export.cli.serve import importing_server
from profile_export.cli.terminal.cells import count, size, span
from profile_export.cli.terminal.command import explain
from profile_export.cli.terminal.output import complain, console, table
from profile_export.cli.terminal.watch import facts, follow, phase_chart
from profile_export.client import (
    Client,
    ClientError,
    DataFile,
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

_LOG = "server.log"
"""Its name in the folder."""

_READY = "listening on "
_START_SECONDS = 60.0
_STOP_SECONDS = 10.0
_INDENT = 4


class DemoError(Exception):
    """The server did not start, or the files could not be read; the sentence holds the last words of who failed."""


@asynccontextmanager
async def _own_server(folder: Path) -> AsyncIterator[str]:
    """Run a server that keeps its data in a folder; yield its address, and stop it at the end."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("PROFILE_EXPORT_")
    }
    log = folder / _LOG
    with log.open("wb") as errors:
        server = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "profile_export", "serve"),
            *("--data-dir", str(folder / "data"), "--grpc-address", "127.0.0.1:0"),
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
        raise DemoError("The server has no output to read its address from.")
    try:
        async with asyncio.timeout(_START_SECONDS):
            async for line in server.stdout:
                text = line.decode(errors="replace").strip()
                if text.startswith(_READY):
                    return text.removeprefix(_READY)
    except TimeoutError:
        raise DemoError(f"The server was not ready after {_START_SECONDS:g} s.") from None
    words = await asyncio.to_thread(log.read_text, errors="replace")
    raise DemoError("The server did not start: " + " ".join(words.split("\n")[-3:]).strip())


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


@dataclass(frozen=True)
class _Source:
    name: str
    kind: DatasetKind.ValueType
    rows: list[Row]
    identities: tuple[IdentityField, ...]
    known_by: str

    def __str__(self) -> str:
        what = "events" if self.kind == DatasetKind.DATASET_KIND_EVENT else "records"
        return f"{self.name:<11}{f'{count(len(self.rows))} {what}':>14}"


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
    with importing_server():
        from profile_export import app  # noqa: F401 - the server that is started here needs it

    folder = Path(tempfile.mkdtemp(prefix="profile-export-"))
    begin = time.monotonic()
    screen = console()
    try:
        asyncio.run(_demo(screen, folder))
    except (DemoError, ClientError) as error:
        complain(explain(error, "its address") if isinstance(error, ClientError) else str(error))
        complain(f"The server's log: {folder / _LOG}" if keep else "With --keep the server's log stays.")
        raise typer.Exit(1) from None
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
    removed = "The folder is removed again; to keep the files: profile-export demo --keep"
    rest = f"The folder stays: {folder}" if keep else removed
    screen.print(f"\n Done in {time.monotonic() - begin:.0f} s. {rest}", soft_wrap=True)


async def _demo(screen: Console, folder: Path) -> None:
    _heading(screen, 1, "A server of its own")
    async with _own_server(folder) as address:
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
        raise DemoError("The export did not succeed: " + "; ".join(error.message for error in job.errors))
    files = await client.list_files(job.batch_id)

    crm_id = sample.shown()
    _heading(screen, 4, "The same person in three sources, and the one row")
    _show(screen, await _by_source(sample.rows_of(crm_id), crm_id, files))
    _say(screen, "Bold: the value that won. The record ingested later wins, field by field.", style="dim")

    _heading(screen, 5, f"Where the {span(job.metrics.total_time.ToTimedelta())} went")
    _show(screen, phase_chart(job.metrics))

    _heading(screen, 6, "Read it yourself")
    for line in await _how_to_read(files):
        screen.print(Text(" " * _INDENT) + line, soft_wrap=True)


async def _fill(client: Client, screen: Console, folder: Path, sample: Sample) -> None:
    sources = _sources(sample)
    bars = Progress(
        TextColumn(" " * _INDENT + "{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[known_by]}", style="dim", markup=False),
        console=screen,
        disable=not screen.is_terminal,
    )
    with bars:
        tasks = [bars.add_task(str(source), total=None, known_by=source.known_by) for source in sources]
        for source, task in zip(sources, tasks, strict=True):
            await _upload(client, folder, source, bars, task)
    if not screen.is_terminal:
        for source in sources:
            _say(screen, f"{source}   {source.known_by}")


async def _upload(client: Client, folder: Path, source: _Source, bars: Progress, task: TaskID) -> None:
    path = folder / f"{source.name}.jsonl".replace(" ", "-").lower()
    lines = "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in source.rows)
    await asyncio.to_thread(path.write_text, lines, encoding="utf-8")
    bars.update(task, total=path.stat().st_size)
    dataset = await client.create_dataset(source.name, source.kind, identities=source.identities)

    def advance(progress: UploadProgress) -> None:
        bars.update(task, completed=progress.bytes)

    await client.upload(dataset.id, path, UploadFormat.UPLOAD_FORMAT_JSON_LINES, progress=advance)


async def _export(client: Client, screen: Console) -> ExportJob:
    destination = await client.create_dataset("One row per person", DatasetKind.DATASET_KIND_UNION)
    policy = await client.create_policy("One row per person", IdentityGraph.IDENTITY_GRAPH_PDG)
    answer = await client.create_job(export_spec(destination.id, policy_id=policy.id, events=Events()))
    job = await follow(client, answer.job.id, screen, indent=_INDENT)
    screen.print()
    return job


def _sources(sample: Sample) -> list[_Source]:
    record, event = DatasetKind.DATASET_KIND_RECORD, DatasetKind.DATASET_KIND_EVENT
    crm_id = partial(IdentityField, path="crmId", namespace="CRM")
    email = partial(IdentityField, path="personalEmail.address", namespace="Email")
    loyalty = partial(IdentityField, path="loyalty.loyaltyId", namespace="Loyalty")
    return [
        _Source("CRM", record, sample.crm, (crm_id(primary=True), email()), "crm id, email"),
        _Source("Web shop", record, sample.shop, (email(primary=True), loyalty()), "email, loyalty id"),
        _Source("Newsletter", record, sample.newsletter, (loyalty(primary=True),), "loyalty id"),
        _Source("Web", event, sample.events, (), "device (ECID), now and then the email"),
    ]


def _heading(screen: Console, number: int, title: str) -> None:
    screen.print()
    screen.print(Text(f" {number}  ", style="bold cyan") + Text(title, style="bold"))


def _say(screen: Console, line: str, style: str = "") -> None:
    screen.print(Text(" " * _INDENT + line, style=style), soft_wrap=True)


def _show(screen: Console, thing: RenderableType) -> None:
    screen.print(Padding(thing, (0, 0, 0, _INDENT), expand=False))


# --- What came out ---

_SOURCES = {"crm": "CRM", "shop": "Web shop", "newsletter": "Newsletter"}
_FIELDS = (
    "crmId",
    "personalEmail.address",
    "loyalty.loyaltyId",
    "person.name.firstName",
    "person.name.lastName",
    "homeAddress.city",
    "mobilePhone.number",
    "loyalty.tier",
    "preferredLanguage",
    "consents.marketing.email.val",
    "consents.marketing.call.val",
    "newsletter.topics",
)
_EVENTS = "len(timeSeriesEvents)"
_DUCKDB = "import duckdb; print(duckdb.read_parquet('*.parquet').project('crmId, loyalty').limit(3))"
_POLARS = "import polars; print(polars.read_parquet('*.parquet'))"
_READ = "import duckdb, json, sys; print(json.dumps(duckdb.execute(sys.argv[1]).fetchall(), default=str))"


async def _by_source(known: dict[str, Row], crm_id: str, files: Sequence[DataFile]) -> Table:
    """Return what each source knows about a person beside the merged row, read from the files."""
    select = ", ".join([*_FIELDS, _EVENTS])
    query = f"SELECT {select} FROM '*.parquet' WHERE crmId = '{crm_id}'"  # noqa: S608 - all made here
    rows = json.loads(await _python(_folder(files), _READ, query))
    if len(rows) != 1:
        raise DemoError(f"The export has {len(rows)} rows for {crm_id}, and should have one.")
    merged = dict(zip([*_FIELDS, _EVENTS], rows[0], strict=True))
    made = table("field", *_SOURCES.values(), "merged", gap=2)
    for path in _FIELDS:
        values = [_value(known[source], path) for source in _SOURCES]
        holders = [index for index, value in enumerate(values) if value is not None]
        winner = next((index for index in reversed(holders) if values[index] == merged[path]), None)
        cells = [
            Text(_word(value), style="bold green" if index == winner else "dim")
            for index, value in enumerate(values)
        ]
        made.add_row(_label(path), *cells, Text(_word(merged[path]), style="bold"))
    made.add_row("timeSeriesEvents", "", "", "", Text(f"{count(merged[_EVENTS])} events", style="bold"))
    return made


async def _how_to_read(files: Sequence[DataFile]) -> list[Text]:
    """Return where the files are, a line each to read them with DuckDB and Polars, and what the first prints."""
    folder = _folder(files)
    listed = [Text(f"{_path(file).name}   {count(file.rows)} rows, {size(file.bytes)}") for file in files]
    shown = [Text(line) for line in (await _python(folder, _DUCKDB)).rstrip().splitlines()]
    return [
        *listed,
        Text(),
        Text(f"cd {shlex.quote(str(folder))}", style="cyan"),
        Text(f'python -c "{_DUCKDB}"', style="cyan"),
        *shown,
        Text(f'python -c "{_POLARS}"', style="cyan"),
    ]


async def _python(folder: Path, code: str, *arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        code,
        *arguments,
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    if process.returncode:
        raise DemoError("DuckDB could not read the files: " + errors.decode().strip().split("\n")[-1])
    return output.decode()


def _path(file: DataFile) -> Path:
    return Path(unquote(urlsplit(file.location).path))


def _folder(files: Sequence[DataFile]) -> Path:
    """Return the folder of the files, which holds nothing else that ends in .parquet."""
    return _path(files[0]).parent


def _value(row: Row, path: str) -> Any:
    value: Any = row
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _label(path: str) -> str:
    """Return the end of a field path, enough to know it by."""
    return ".".join(path.removesuffix(".val").removesuffix(".address").split(".")[-2:])


def _word(value: Any) -> str:
    if value is None:
        return ""
    return ", ".join(value) if isinstance(value, list) else str(value)
