"""JSON lines: one object per line, in UTF-8. Blank lines are skipped, but counted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from profile_export.domain.learning import ValueRefusedError
from profile_export.ingest.json_text import json_decoder, json_refusal
from profile_export.ingest.rejected import MAX_TEXT_BYTES
from profile_export.ingest.sent_rows import SentRow, too_large
from profile_export.ingest.task import IngestTask

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_LINE_END = b"\r\n"


def read_json_lines(task: IngestTask) -> Iterator[SentRow]:
    """Read an upload of JSON lines; any line can be refused without touching the next."""
    decoder = json_decoder(task.fields)
    limit = task.max_row_bytes
    with task.source.open("rb") as source:
        for number, line in enumerate(bounded_lines(source, limit), 1):
            if number == 1:
                line = line.removeprefix(BYTE_ORDER_MARK)  # noqa: PLW2901 - the same line
            if len(line) > limit and len(line.rstrip(_LINE_END)) > limit:
                yield SentRow(number, too_large(limit), line)
            elif not line.isspace():
                yield SentRow(number, _parsed(line, decoder), line)


def bounded_lines(source: BinaryIO, limit: int) -> Iterator[bytes]:
    """Yield lines with their ends; of one that is longer than `limit` so much that this and its text can be told."""
    most = max(limit, MAX_TEXT_BYTES) + len(BYTE_ORDER_MARK) + len(_LINE_END) + 1
    while line := source.readline(most):
        yield line
        while len(line) == most and not line.endswith(b"\n"):
            line = source.readline(most)


def _parsed(line: bytes, decoder: json.JSONDecoder) -> Any:
    try:
        return decoder.decode(line.decode())
    except (ValueError, RecursionError, ValueRefusedError) as error:
        return json_refusal(error)
