"""The merged rows of the demo, read from the files by another process, as any reader would."""

import asyncio
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from rich.table import Table
from rich.text import Text

from profile_export.cli.demo_data import Row
from profile_export.cli.output import count, size, table
from profile_export.client import DataFile

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
