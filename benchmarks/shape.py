"""What the shape of a record costs: deep, wide and nested ones beside flat rows of the same bytes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks import ours
from benchmarks.report import Line
from benchmarks.server import Server
from profile_export.client import Client, DatasetKind, Events, IdentityField

_HOLD = "≤ 3x"
_LEVELS = 61
"""Objects within objects: with the field and the item that hold them, as many as an upload takes."""
_NAMES = 900
"""Names in one object, as many as the bytes of an event take."""
_FLAT = 10


def _flat(row: int) -> dict[str, Any]:
    return {f"field{number}": f"value {row}" for number in range(_FLAT)}


def _within(levels: int, value: Any, wrap: Callable[[int, Any], Any]) -> dict[str, Any]:
    for level in reversed(range(levels)):
        value = wrap(level, value)
    return {"within": value}


def _deep(row: int) -> dict[str, Any]:
    """Objects within objects, each with a text beside the next."""
    return _within(
        _LEVELS, {"end": f"value {row}"}, lambda level, inner: {f"in{level}": inner, "text": f"{row}"}
    )


def _wide(row: int) -> dict[str, Any]:
    return {f"n{number}": row % 10 for number in range(_NAMES)}


def _deep_and_wide(row: int) -> dict[str, Any]:
    return _within(_LEVELS - 1, _wide(row), lambda level, inner: {f"{level}": inner})


def _items(row: int) -> dict[str, Any]:
    """Arrays of objects within arrays of objects."""
    return _within(
        _LEVELS // 2, {"end": f"value {row}"}, lambda level, inner: {f"in{level}": [inner], "text": f"{row}"}
    )


def _arrays(row: int) -> dict[str, Any]:
    """Arrays within arrays, with objects at the end."""
    return _within(_LEVELS - 3, {"end": f"value {row}"}, lambda _level, inner: [inner])


_SHAPES: Mapping[str, Callable[[int], dict[str, Any]]] = {
    f"{_LEVELS} levels of objects": _deep,
    f"{_NAMES:,} names in an object": _wide,
    "both": _deep_and_wide,
    f"{_LEVELS // 2} levels of arrays of objects": _items,
    f"{_LEVELS - 3} levels of arrays": _arrays,
}


async def measure_shapes(server: Server, folder: Path, size: int) -> list[Line]:
    """Measure exports of records and of events in each shape, about `size` bytes of JSON lines each."""
    lines = []
    for events in (False, True):
        flat = await _export(server, folder, "flat", _flat, size, events=events)
        for name, shape in _SHAPES.items():
            took = await _export(server, folder, name, shape, size, events=events)
            what = f"{'events' if events else 'records'} with {name}, against flat rows of the same bytes"
            lines.append(Line.timed(what, took, flat, _HOLD))
    return lines


async def _export(
    server: Server,
    folder: Path,
    name: str,
    shape: Callable[[int], dict[str, Any]],
    size: int,
    *,
    events: bool,
) -> float:
    path = folder / "shape.jsonl"
    with path.open("w") as file:
        file.writelines(_lines(shape, size))
    sandbox = f"bench-{'events' if events else 'records'}-{name.replace(' ', '-').replace(',', '')}"
    async with Client(server.address, sandbox=sandbox) as client:
        identities = [IdentityField(path="id", namespace="CRM", primary=True)]
        kind = DatasetKind.DATASET_KIND_EVENT if events else DatasetKind.DATASET_KIND_RECORD
        source = await client.create_dataset("shape", kind, identities=identities)
        await ours.upload_lines(client, source.id, path)
        if events:
            people = await client.create_dataset(
                "people", DatasetKind.DATASET_KIND_RECORD, identities=identities
            )
            path.write_text('{"id": "1"}\n')
            await ours.upload_lines(client, people.id, path)
        destination = await ours.destination(client)
        job = await ours.run_job(client, destination, events=Events() if events else None)
        return job.seconds


def _lines(shape: Callable[[int], dict[str, Any]], size: int) -> Iterator[str]:
    row = written = 0
    while written < size:
        row += 1
        about = {"id": f"{row}", "_id": f"e{row}", "timestamp": "2026-01-01T00:00:00Z", "body": shape(row)}
        line = json.dumps(about, separators=(",", ":")) + "\n"
        written += len(line)
        yield line
