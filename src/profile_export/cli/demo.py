"""From three sources to one row per person, live, on a real server in a temporary folder, and the sample for it."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
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

from profile_export.cli.terminal.command import explain
from profile_export.cli.terminal.output import complain, console, count, size, span, table
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
    rows: list[_Row]
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
    sample = _make_sample()
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


async def _fill(client: Client, screen: Console, folder: Path, sample: _Sample) -> None:
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


def _sources(sample: _Sample) -> list[_Source]:
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
    screen.print(Padding(thing, (0, 0, 0, _INDENT)))


# --- The sample: made up, and the same on every run ---

_PEOPLE = 2_000
_EVENTS_MADE = 6_000
_STRANGERS = 150
"""Devices that never told an email: they stay without a profile record."""

_Row = dict[str, Any]

_SEED = 2024
_START = datetime(2025, 3, 1, tzinfo=UTC)
_MINUTES = 90 * 24 * 60
_SHORT = len("ada0123@example.com")
_FIRST = (
    "Ada Alan Amir Anke Anna Aylin Ben Bram Carla Chen Daan Dana Elif Emma Eva Femke Finn Grace Hana Hugo Ida Ines "
    "Iris Jonas Juna Kaan Kofi Lars Lea Lina Lotte Luca Maja Marta Mats Mina Nils Noor Olga Omar Otto Paula Pien Rosa "
    "Ruben Sami Sofia Sven Tariq Tess Theo Timo Ulla Vera Wim Yara Yusuf Zoe"
)
_LAST = (
    "Adler Bakker Becker Berg Blom Bos Brandt Claes Costa Demir Dijkstra Ebner Engel Faber Fischer Garcia Hansen Haas "
    "Ivanova Jansen Kaya Keller Khan Kok Kramer Lang Lindt Maas Meyer Moreau Novak Okafor Peeters Petit Quist Rossi "
    "Sato Schmidt Silva Smit Stein Tanaka Thomas Tran Visser Vogel Weber Willems Yilmaz Zimmer"
)
_CITIES = (
    ("Amsterdam", "NL", "1017"),
    ("Antwerp", "BE", "2000"),
    ("Berlin", "DE", "10115"),
    ("Cologne", "DE", "50667"),
    ("Ghent", "BE", "9000"),
    ("Hamburg", "DE", "20095"),
    ("Lyon", "FR", "69001"),
    ("Rotterdam", "NL", "3011"),
    ("Utrecht", "NL", "3511"),
    ("Vienna", "AT", "1010"),
)
_LANGUAGES = {"NL": "nl-NL", "BE": "nl-BE", "DE": "de-DE", "FR": "fr-FR", "AT": "de-AT"}
_TOPICS = ("garden", "kitchen", "lighting", "outdoor", "storage", "textiles")
_PAGES = ("home", "kitchen", "lighting", "new arrivals", "sale", "checkout")
_TIERS = ("bronze", "silver", "gold")
# Which systems know a person, with weights. The newsletter knows loyalty ids only, which the shop leads to an email.
_WHERE = {
    ("crm", "shop", "newsletter"): 22,
    ("crm", "shop"): 24,
    ("crm",): 26,
    ("shop",): 10,
    ("shop", "newsletter"): 10,
    ("newsletter",): 8,
}


@dataclass(frozen=True)
class _Sample:
    """The rows of each source."""

    crm: list[_Row] = field(default_factory=list)
    shop: list[_Row] = field(default_factory=list)
    newsletter: list[_Row] = field(default_factory=list)
    events: list[_Row] = field(default_factory=list)

    def shown(self) -> str:
        """Return the crm id of somebody whom all three sources know, with values that disagree."""
        shop = {row["personalEmail"]["address"]: row for row in self.shop}
        newsletter = {row["loyalty"]["loyaltyId"]: row for row in self.newsletter}
        for row in self.crm:
            bought = shop.get(row["personalEmail"]["address"], {})
            reads = newsletter.get(bought.get("loyalty", {}).get("loyaltyId"), {})
            if (
                reads
                and reads["consents"]["marketing"]["email"]["val"] == "n"
                and len(reads["newsletter"]["topics"]) == 1
                and bought["homeAddress"] != row["homeAddress"]
                and "mobilePhone" in bought
                and len(row["personalEmail"]["address"]) <= _SHORT
            ):
                return str(row["crmId"])
        raise LookupError("the sample has nobody whom all sources know")

    def rows_of(self, crm_id: str) -> dict[str, _Row]:
        """Return what each source knows about the person with a crm id."""
        crm = next(row for row in self.crm if row["crmId"] == crm_id)
        shop = next(row for row in self.shop if row["personalEmail"] == crm["personalEmail"])
        loyalty_id = shop["loyalty"]["loyaltyId"]
        newsletter = next(row for row in self.newsletter if row["loyalty"]["loyaltyId"] == loyalty_id)
        return {"crm": crm, "shop": shop, "newsletter": newsletter}


def _make_sample() -> _Sample:
    """Return the sample."""
    dice = random.Random(_SEED)  # noqa: S311 - repeatable is the point
    sample = _Sample()
    devices: list[tuple[str, str]] = []
    for number in range(1, _PEOPLE + 1):
        known = dice.choices(list(_WHERE), list(_WHERE.values()))[0]
        person = _Person(number, dice)
        if "crm" in known:
            sample.crm.append(person.crm())
        if "shop" in known:
            sample.shop.append(person.shop())
        if "newsletter" in known:
            sample.newsletter.append(person.newsletter())
        if known != ("newsletter",):
            devices.append((f"{dice.getrandbits(64):020d}", person.email))
    devices += [(f"{dice.getrandbits(64):020d}", "") for _ in range(_STRANGERS)]
    sample.events.extend(_events(devices, dice))
    return sample


class _Person:
    def __init__(self, number: int, dice: random.Random) -> None:
        self._number = number
        self._dice = dice
        self._first, self._last = dice.choice(_FIRST.split()), dice.choice(_LAST.split())
        self.email = f"{self._first}{number}@example.com".lower()
        self._loyalty_id = f"L-{700_000 + number}"
        self._city = dice.choice(_CITIES)
        self._moved_to = dice.choice(_CITIES) if dice.random() < 0.3 else self._city  # noqa: PLR2004 - a share of the people

    def crm(self) -> _Row:
        dice = self._dice
        return {
            "crmId": f"C-{10_000 + self._number}",
            "person": {
                "name": {"firstName": self._first, "lastName": self._last},
                "birthYear": dice.randint(1945, 2005),
            },
            "personalEmail": {"address": self.email},
            "mobilePhone": {"number": f"+1 555 010 {self._number:04d}"},
            "homeAddress": self._address(self._city),
            "consents": {"marketing": {"email": {"val": "y"}, "call": {"val": dice.choice("yn")}}},
        }

    def shop(self) -> _Row:
        dice = self._dice
        row = {
            "personalEmail": {"address": self.email},
            "person": {"name": {"firstName": self._first}},
            "homeAddress": self._address(self._moved_to),
            "loyalty": {
                "loyaltyId": self._loyalty_id,
                "tier": dice.choice(_TIERS),
                "points": dice.randrange(0, 5_000, 10),
            },
        }
        if dice.random() < 0.5:  # noqa: PLR2004 - a share of the people
            row["mobilePhone"] = {"number": f"+1 555 019 {self._number:04d}"}
        return row

    def newsletter(self) -> _Row:
        dice = self._dice
        return {
            "loyalty": {"loyaltyId": self._loyalty_id},
            "preferredLanguage": _LANGUAGES[self._moved_to[1]],
            "consents": {"marketing": {"email": {"val": dice.choice("yyn")}}},
            "newsletter": {"topics": sorted(dice.sample(_TOPICS, dice.randint(1, 3)))},
        }

    def _address(self, city: tuple[str, str, str]) -> _Row:
        name, country, code = city
        return {"city": name, "postalCode": code, "country": country}


def _events(devices: list[tuple[str, str]], dice: random.Random) -> Iterator[_Row]:
    """Events of the devices; each device that has an email tells it with its first event, then now and then."""
    told: set[str] = set()
    for number in range(_EVENTS_MADE):
        device, email = devices[number] if number < len(devices) else dice.choice(devices)
        identities: _Row = {"ECID": [{"id": device, "primary": True}]}
        purchase = bool(email) and dice.random() < 0.35  # noqa: PLR2004 - a share of the people
        if email and (device not in told or purchase):
            identities["Email"] = [{"id": email}]
            told.add(device)
        time = _START + timedelta(minutes=dice.randrange(_MINUTES), seconds=dice.randrange(60))
        event = {"_id": f"e-{number:05d}", "timestamp": time.isoformat(), "identityMap": identities}
        yield event | (_purchase(dice) if purchase else _page_view(dice))


def _purchase(dice: random.Random) -> _Row:
    return {
        "eventType": "commerce.purchases",
        "commerce": {"order": {"priceTotal": dice.randrange(500, 25_000) / 100, "currencyCode": "EUR"}},
    }


def _page_view(dice: random.Random) -> _Row:
    return {
        "eventType": "web.webpagedetails.pageViews",
        "web": {"webPageDetails": {"name": dice.choice(_PAGES)}},
    }


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


async def _by_source(known: dict[str, _Row], crm_id: str, files: Sequence[DataFile]) -> Table:
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


def _value(row: _Row, path: str) -> Any:
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
