"""Small good files of many shapes, and what is left of them after somebody has been at them."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from profile_export.v1 import dataset_service_pb2 as ds
from tests.hostile.mutations import mutated
from tests.hostile.thrift import with_other_footer_number, with_other_page_number

ROWS = 40


@dataclass(frozen=True)
class Sent:
    """A file, and what it is called where it is spoken of."""

    name: str
    format: ds.UploadFormat.ValueType
    content: bytes


def good_files() -> list[Sent]:
    """Files that can be taken, of records whose identity is `crmId`."""
    lines = [json.dumps(row) for row in _rows()]
    text = "\n".join(lines).encode()
    files = [
        Sent("lines", ds.UPLOAD_FORMAT_JSON_LINES, text),
        Sent("lines with blanks", ds.UPLOAD_FORMAT_JSON_LINES, b"\r\n\r\n".join(text.splitlines())),
        Sent("array", ds.UPLOAD_FORMAT_JSON_ARRAY, f"[{','.join(lines)}]".encode()),
        Sent("indented array", ds.UPLOAD_FORMAT_JSON_ARRAY, json.dumps(_rows(), indent=1).encode()),
        Sent("csv", ds.UPLOAD_FORMAT_CSV, _csv(",", "\n")),
        Sent("csv with quotes", ds.UPLOAD_FORMAT_CSV, _csv('","', '"\r\n"')),
    ]
    for name, options in _WRITERS.items():
        files.append(Sent(f"parquet {name}", ds.UPLOAD_FORMAT_PARQUET, _parquet(options)))
    return files


def damaged(dice: random.Random, files: Sequence[Sent]) -> Sent:
    """Take one of some good files, and change it."""
    one, other = dice.choice(files), dice.choice(files)
    ways: list[Callable[[], bytes]] = [lambda: mutated(dice, one.content, other.content)]
    if one.format == ds.UPLOAD_FORMAT_PARQUET:
        ways += [
            lambda: with_other_footer_number(dice, one.content),
            lambda: with_other_page_number(dice, one.content, dice.choice(_pages(one.content))),
        ]
    else:
        ways += [lambda: _reworded(dice, one.content)]
    content = dice.choice(ways)()
    # Now and then as what it is not.
    told = one.format if dice.random() < 0.97 else other.format
    return Sent(f"damaged {one.name}", told, content)


# --- Text ---


def _rows() -> list[dict[str, Any]]:
    return [
        {
            "crmId": f"C-{number}",
            "age": number,
            "score": number / 7,
            "glad": number % 2 == 0,
            "note": None if number % 3 else 'said "hm", é \U0001f600\t',
            "person": {"name": {"first": f"Ann {number}"}, "tags": ["a", "b"], "pets": [{"kind": "cat"}, {}]},
            "segmentMembership": {"ups": {"gold": {"status": "realized"}}},
        }
        for number in range(ROWS)
    ]


def _csv(between: str, line_end: str) -> bytes:
    edge = between.partition(",")[0]
    rows = [("crmId", "age", "person.name.first", "born")]
    rows += [(f"C-{number}", str(number), f"Ann {number}", "2001-02-03") for number in range(ROWS)]
    return (edge + line_end.join(between.join(row) for row in rows) + edge).encode()


_WORDS = (
    b"1e400",
    b"-" + b"9" * 5_000,
    b"0." + b"0" * 5_000 + b"1",
    b"[" * 2_000,
    b'{"a":' * 2_000,
    b'"' + b"\\u0000" * 500 + b'"',
    b'"\\ud800"',
    b"NaN",
    b"-Infinity",
    b"null",
    b"{}",
    b"[[[[]]]]",
    b'{"crmId": "x", "crmId": "y"}',
    b'{"": {"": {"": 1}}}',
    b'{"a.b": 1, "a": {"b": 2}}',
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"\0",
    b'"',
    b"\r",
    b"," * 5_000,
    b"true",
    b'"9999-12-31T23:59:60Z"',
    b'{"identityMap": {"Email": [{"id": "a", "primary": "yes"}]}}',
)


def _reworded(dice: random.Random, content: bytes) -> bytes:
    """Put words where others were."""
    changed = content
    for _ in range(dice.choice((1, 1, 3))):
        at = dice.randrange(len(changed) + 1)
        places = [place for mark in (b": ", b",", b"\n") if (place := changed.find(mark, at)) >= 0]
        start = min(places, default=at) + 1
        ends = [place for mark in (b",", b"}", b"\n") if (place := changed.find(mark, start)) >= 0]
        changed = changed[:start] + dice.choice(_WORDS) + changed[min(ends, default=start) :]
    return changed


# --- Parquet ---

_WRITERS: Mapping[str, Mapping[str, Any]] = {
    "plain": {"compression": "none", "use_dictionary": False},
    "snappy": {"compression": "snappy", "row_group_size": 7},
    "gzip": {"compression": "gzip", "data_page_version": "2.0"},
    "brotli": {"compression": "brotli"},
    "zstd": {"compression": "zstd", "data_page_size": 64, "write_page_index": True},
    "lz4": {"compression": "lz4", "write_page_checksum": True},
    "1.0": {"version": "1.0", "use_deprecated_int96_timestamps": True},
    "delta": {
        "use_dictionary": False,
        "column_encoding": {
            "crmId": "DELTA_BYTE_ARRAY",
            "age": "DELTA_BINARY_PACKED",
            "score": "BYTE_STREAM_SPLIT",
            "note": "DELTA_LENGTH_BYTE_ARRAY",
        },
    },
    "without statistics": {"write_statistics": False, "store_schema": False},
}


def _parquet(options: Mapping[str, Any]) -> bytes:
    rows = _rows()
    fields = {
        "crmId": pa.array([row["crmId"] for row in rows]),
        "age": pa.array([row["age"] for row in rows]),
        "score": pa.array([row["score"] for row in rows]),
        "note": pa.array([row["note"] for row in rows]),
        "person": pa.array([row["person"] for row in rows]),
        "city": pa.array(["Oslo", None] * (ROWS // 2)).dictionary_encode(),
        "price": pa.array([Decimal("1.23")] * ROWS, pa.decimal128(9, 2)),
        "born": pa.array([date(2001, 2, 3)] * ROWS),
        "seen": pa.array([datetime(2026, 3, 1, tzinfo=UTC)] * ROWS, pa.timestamp("us", "UTC")),
        "lists": pa.array([[[1], []], None] * (ROWS // 2), pa.list_(pa.list_(pa.int32()))),
        "counts": pa.array([[("a", 1)], []] * (ROWS // 2), pa.map_(pa.string(), pa.int64())),
    }
    file = io.BytesIO()
    pq.write_table(pa.table(fields), file, **options)
    return file.getvalue()


def _pages(file: bytes) -> list[int]:
    """Return where the first pages of its columns begin."""
    metadata = pq.read_metadata(io.BytesIO(file))
    group = metadata.row_group(0)
    columns = [group.column(index) for index in range(group.num_columns)]
    offsets = [(column.dictionary_page_offset, column.data_page_offset) for column in columns]
    return [offset for both in offsets for offset in both if offset]
