"""The sample of the demo: people that three systems know under different ids; and its merged rows.

The same on every run. Every name, address and number is made up.
"""

from __future__ import annotations

import asyncio
import json
import random
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from rich.table import Table
from rich.text import Text

from profile_export.cli.terminal.output import count, size, table
from profile_export.client import DataFile

PEOPLE = 2_000
EVENTS = 6_000
STRANGERS = 150
"""Devices that never told an email: they stay without a profile record."""

Row = dict[str, Any]

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
class Sample:
    """The rows of each source."""

    crm: list[Row] = field(default_factory=list)
    shop: list[Row] = field(default_factory=list)
    newsletter: list[Row] = field(default_factory=list)
    events: list[Row] = field(default_factory=list)

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

    def rows_of(self, crm_id: str) -> dict[str, Row]:
        """Return what each source knows about the person with a crm id."""
        crm = next(row for row in self.crm if row["crmId"] == crm_id)
        shop = next(row for row in self.shop if row["personalEmail"] == crm["personalEmail"])
        loyalty_id = shop["loyalty"]["loyaltyId"]
        newsletter = next(row for row in self.newsletter if row["loyalty"]["loyaltyId"] == loyalty_id)
        return {"crm": crm, "shop": shop, "newsletter": newsletter}


def make_sample() -> Sample:
    """Return the sample."""
    dice = random.Random(_SEED)  # noqa: S311 - repeatable is the point
    sample = Sample()
    devices: list[tuple[str, str]] = []
    for number in range(1, PEOPLE + 1):
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
    devices += [(f"{dice.getrandbits(64):020d}", "") for _ in range(STRANGERS)]
    sample.events.extend(_events(devices, dice))
    return sample


def write_lines(path: Path, rows: Iterable[Row]) -> Path:
    """Write rows as JSON lines."""
    with path.open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(row, separators=(",", ":")) + "\n" for row in rows)
    return path


class _Person:
    def __init__(self, number: int, dice: random.Random) -> None:
        self._number = number
        self._dice = dice
        self._first, self._last = dice.choice(_FIRST.split()), dice.choice(_LAST.split())
        self.email = f"{self._first}{number}@example.com".lower()
        self._loyalty_id = f"L-{700_000 + number}"
        self._city = dice.choice(_CITIES)
        self._moved_to = dice.choice(_CITIES) if dice.random() < 0.3 else self._city  # noqa: PLR2004 - a share of the people

    def crm(self) -> Row:
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

    def shop(self) -> Row:
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

    def newsletter(self) -> Row:
        dice = self._dice
        return {
            "loyalty": {"loyaltyId": self._loyalty_id},
            "preferredLanguage": _LANGUAGES[self._moved_to[1]],
            "consents": {"marketing": {"email": {"val": dice.choice("yyn")}}},
            "newsletter": {"topics": sorted(dice.sample(_TOPICS, dice.randint(1, 3)))},
        }

    def _address(self, city: tuple[str, str, str]) -> Row:
        name, country, code = city
        return {"city": name, "postalCode": code, "country": country}


def _events(devices: list[tuple[str, str]], dice: random.Random) -> Iterator[Row]:
    """Events of the devices; each device that has an email tells it with its first event, then now and then."""
    told: set[str] = set()
    for number in range(EVENTS):
        device, email = devices[number] if number < len(devices) else dice.choice(devices)
        identities: Row = {"ECID": [{"id": device, "primary": True}]}
        purchase = bool(email) and dice.random() < 0.35  # noqa: PLR2004 - a share of the people
        if email and (device not in told or purchase):
            identities["Email"] = [{"id": email}]
            told.add(device)
        time = _START + timedelta(minutes=dice.randrange(_MINUTES), seconds=dice.randrange(60))
        event = {"_id": f"e-{number:05d}", "timestamp": time.isoformat(), "identityMap": identities}
        yield event | (_purchase(dice) if purchase else _page_view(dice))


def _purchase(dice: random.Random) -> Row:
    return {
        "eventType": "commerce.purchases",
        "commerce": {"order": {"priceTotal": dice.randrange(500, 25_000) / 100, "currencyCode": "EUR"}},
    }


def _page_view(dice: random.Random) -> Row:
    return {
        "eventType": "web.webpagedetails.pageViews",
        "web": {"webPageDetails": {"name": dice.choice(_PAGES)}},
    }


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


class ReadError(Exception):
    """The files could not be read; the sentence holds what the reader said."""


async def by_source(known: dict[str, Row], crm_id: str, files: Sequence[DataFile]) -> Table:
    """Return what each source knows about a person beside the merged row, read from the files."""
    select = ", ".join([*_FIELDS, _EVENTS])
    query = f"SELECT {select} FROM '*.parquet' WHERE crmId = '{crm_id}'"  # noqa: S608 - all made here
    rows = json.loads(await _python(_folder(files), _READ, query))
    if len(rows) != 1:
        raise ReadError(f"The export has {len(rows)} rows for {crm_id}, and should have one.")
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


async def how_to_read(files: Sequence[DataFile]) -> list[Text]:
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
        raise ReadError("DuckDB could not read the files: " + errors.decode().strip().split("\n")[-1])
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
