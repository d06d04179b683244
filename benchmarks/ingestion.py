"""What ingestion costs beside Arrow's own reader and writer on the same file, and how much memory it takes."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from benchmarks.data import plain_sample
from benchmarks.process import Cost, cost_of, in_child
from benchmarks.report import Line, megabytes
from benchmarks.tiny import write_lines
from profile_export.domain.catalog.datasets import (
    BUILT_IN_SCHEMAS,
    DatasetKind,
    IdentityField,
    initial_fields,
)
from profile_export.domain.schemas.types import FieldPath, ObjectType, leaves
from profile_export.ingest.ingestion import ingest
from profile_export.ingest.task import IngestTask

_CRM = IdentityField(("crmId",), "CRM", primary=True)
_SCHEMA = next(schema for schema in BUILT_IN_SCHEMAS.values() if schema.kind is DatasetKind.RECORD)
_FIELDS = initial_fields(_SCHEMA, [_CRM])
_NAMES = {"json_lines": "JSON lines", "json_array": "a JSON array", "csv": "CSV", "parquet": "Parquet"}
_NO_READER = {"json_array"}
_ROWS_AT_ONCE = 20_000


def measure_ingestion(folder: Path, *, rows: int, runs: int, sizes: Sequence[int]) -> list[Line]:
    """Measure every format at one size, and the memory of JSON lines and Parquet at several.

    Args:
        folder: For the files.
        rows: Records of 31 fields.
        runs: Of each; the median counts.
        sizes: Bytes of JSON lines, growing; the Parquet file has the same rows.
    """
    sample = plain_sample(rows).sources[0].uploads[0].path
    known = _known(sample, folder / "known")
    files = _written(sample, known, folder)
    count = pq.read_metadata(sample).num_rows
    lines = [_line(kind, file, known, count, runs, folder) for kind, file in files.items()]
    bytes_per_row = files["json_lines"].stat().st_size / count
    repetitions = [max(1, round(size / bytes_per_row / count)) for size in sizes]
    for kind in ("json_lines", "parquet"):
        peaks = []
        for times in repetitions:
            repeated = _repeated(kind, files[kind], times, folder / "repeated")
            peaks.append(in_child(partial(_ingested, kind, repeated, _FIELDS, folder / "out")).peak_bytes)
            repeated.unlink()
        told = " against ".join(megabytes(times * count * bytes_per_row) for times in reversed(repetitions))
        lines.append(
            Line(
                f"peak memory of ingestion, {_NAMES[kind]}: {told} as JSON lines",
                megabytes(peaks[-1]),
                megabytes(peaks[0]),
                f"{peaks[-1] / peaks[0]:.2f}x",
                "report",
            )
        )
    return lines


def _line(kind: str, file: Path, known: ObjectType, count: int, runs: int, folder: Path) -> Line:
    # CSV teaches no types: its dataset knows them from another file.
    fields = known if kind == "csv" else _FIELDS
    what = f"ingestion of {count:,} rows of {_NAMES[kind]}, rows per CPU second"
    ours = _median(partial(_ingested, kind, file, fields, folder / "out"), runs)
    if kind in _NO_READER:
        return Line(what, f"{count / ours:,.0f}/s", hold="report")
    other = _median(partial(_copied, kind, file, folder / "copy.parquet"), runs)
    return Line(
        f"{what}, against Arrow's reader and writer",
        f"{count / ours:,.0f}/s",
        f"{count / other:,.0f}/s",
        f"{ours / other:.1f}x",
        "report",
    )


# --- In a process of their own ---


def _median(work: Callable[[], Cost], runs: int) -> float:
    return statistics.median(in_child(work).cpu_seconds for _ in range(runs))


def _ingested(kind: str, file: Path, fields: ObjectType, folder: Path) -> Cost:
    return cost_of(partial(_ingest, kind, file, fields, folder))


def _ingest(kind: str, file: Path, fields: ObjectType, folder: Path) -> ObjectType:
    task = IngestTask(
        source=file,
        format=kind,
        kind=DatasetKind.RECORD,
        batch_id="bench",
        fields=fields,
        identity_fields=(_CRM,),
        folder=folder,
    )
    result = ingest(task)
    for written in result.files:
        (folder / written.name).unlink()
    return result.fields


def _copied(kind: str, file: Path, output: Path) -> Cost:
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    readers: dict[str, Callable[[Path], pa.Table]] = {
        "json_lines": pyarrow.json.read_json,
        "csv": pyarrow.csv.read_csv,
        "parquet": pq.read_table,
    }
    return cost_of(lambda: pq.write_table(readers[kind](file), output, compression="zstd"))


# --- The files ---


def _known(sample: Path, folder: Path) -> ObjectType:
    """Return the fields of the sample, as a dataset knows them once it has ingested some of it."""
    folder.mkdir()
    some = folder / "some.parquet"
    pq.write_table(pq.read_table(sample).slice(0, 1), some)
    return _ingest("parquet", some, _FIELDS, folder)


def _written(sample: Path, known: ObjectType, folder: Path) -> dict[str, Path]:
    lines = folder / "sample.jsonl"
    with pq.ParquetFile(sample) as file:
        write_lines(
            lines,
            (
                record
                for batch in file.iter_batches(_ROWS_AT_ONCE)
                for record in batch.to_pylist(maps_as_pydicts="strict")
            ),
        )
    array, table = folder / "sample.json", folder / "sample.csv"
    with lines.open() as source, array.open("w") as output:
        output.write("[")
        output.writelines(f"{',' * bool(number)}{line}" for number, line in enumerate(source))
        output.write("]")
    with lines.open() as source, table.open("w", newline="") as output:
        paths = [path for path, _ in leaves(known)]
        writer = csv.writer(output)
        writer.writerow(map(".".join, paths))
        writer.writerows(_cells(json.loads(line), paths) for line in source)
    return {"json_lines": lines, "json_array": array, "csv": table, "parquet": sample}


def _cells(record: Any, paths: Iterable[FieldPath]) -> list[str]:
    cells = []
    for path in paths:
        value = record
        for name in path:
            value = value and value.get(name)
        if isinstance(value, str):
            cells.append(value)
        else:
            cells.append("" if value is None else json.dumps(value))
    return cells


def _repeated(kind: str, file: Path, times: int, target: Path) -> Path:
    """Write the rows of a file several times over."""
    if kind == "parquet":
        with pq.ParquetFile(file) as source, pq.ParquetWriter(target, source.schema_arrow) as writer:
            for _ in range(times):
                for batch in source.iter_batches():
                    writer.write_batch(batch)
        return target
    with target.open("wb") as output:
        for _ in range(times):
            with file.open("rb") as lines:
                while block := lines.read(2**20):
                    output.write(block)
    return target
