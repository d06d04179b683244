"""What the shape of a record costs: deep, wide and nested ones beside flat rows of the same bytes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import ours
from benchmarks.report import Line
from benchmarks.server import Server
from profile_export.client import Client, DatasetKind, Events, IdentityField

_HOLD = "≤ 3x"
_LEVELS = 61
"""Objects within objects: with the field and the item that hold them, as many as an upload takes."""
_NAMES, _NAMES_OF_EVENT = 5_000, 900
"""Names in one object: as many as there may be, and as the bytes of an event take."""
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


def _wide(names: int, row: int) -> dict[str, Any]:
    return {f"n{number}": row % 10 for number in range(names)}


def _deep_and_wide(row: int) -> dict[str, Any]:
    return _within(_LEVELS - 1, _wide(_NAMES_OF_EVENT, row), lambda level, inner: {f"{level}": inner})


def _items(row: int) -> dict[str, Any]:
    """Arrays of objects within arrays of objects."""
    return _within(
        _LEVELS // 2, {"end": f"value {row}"}, lambda level, inner: {f"in{level}": [inner], "text": f"{row}"}
    )


def _arrays(row: int) -> dict[str, Any]:
    """Arrays within arrays, with objects at the end."""
    return _within(_LEVELS - 3, {"end": f"value {row}"}, lambda _level, inner: [inner])


_Shape = Callable[[int], dict[str, Any]]
_LONG = {f"{_NAMES:,} names in an object": partial(_wide, _NAMES)}
_SHORT = {f"{_NAMES_OF_EVENT:,} names in an object": partial(_wide, _NAMES_OF_EVENT)}
_DEEP: Mapping[str, _Shape] = {
    f"{_LEVELS} levels of objects": _deep,
    f"{_LEVELS - 1} levels around {_NAMES_OF_EVENT:,} names": _deep_and_wide,
    f"{_LEVELS // 2} levels of arrays of objects": _items,
    f"{_LEVELS - 3} levels of arrays": _arrays,
}
_SHAPES: Mapping[str, Mapping[str, _Shape]] = {
    "records": {**_LONG, **_DEEP},
    "records of two datasets": {**_LONG, **_DEEP},
    "events": {**_SHORT, **_DEEP},
}


async def measure_shapes(server: Server, folder: Path, size: int) -> list[Line]:
    """Measure exports of records, merged and not, and of events in each shape, `size` bytes of JSON lines each."""
    lines = []
    for number, (rows, shapes) in enumerate(_SHAPES.items()):
        flat = await _export(server, folder, f"{number}-flat", _flat, size, rows)
        for place, (name, shape) in enumerate(shapes.items()):
            took = await _export(server, folder, f"{number}-{place}", shape, size, rows)
            lines.append(
                Line.timed(f"{rows} with {name}, against flat ones of the same bytes", took, flat, _HOLD)
            )
    return lines


async def _export(server: Server, folder: Path, sandbox: str, shape: _Shape, size: int, rows: str) -> float:
    path, people = folder / "shape.jsonl", folder / "people.jsonl"
    with path.open("w") as file:
        file.writelines(_lines(shape, size))
    people.write_text('{"id": "1"}\n')
    record, event = DatasetKind.DATASET_KIND_RECORD, DatasetKind.DATASET_KIND_EVENT
    sources = {
        "records": [(record, path)],
        "records of two datasets": [(record, path), (record, path)],
        "events": [(event, path), (record, people)],
    }[rows]
    async with Client(server.address, sandbox=f"bench-shape-{sandbox}") as client:
        identities = [IdentityField(path="id", namespace="CRM", primary=True)]
        for kind, sent in sources:
            source = await client.create_dataset("shape", kind, identities=identities)
            await ours.upload_lines(client, source.id, sent)
        destination = await ours.destination(client)
        job = await ours.run_job(client, destination, events=Events() if rows == "events" else None)
        return job.seconds


def _lines(shape: _Shape, size: int) -> Iterator[str]:
    row = written = 0
    while written < size:
        row += 1
        about = {"id": f"{row}", "_id": f"e{row}", "timestamp": "2026-01-01T00:00:00Z", "body": shape(row)}
        line = json.dumps(about, separators=(",", ":")) + "\n"
        written += len(line)
        yield line
