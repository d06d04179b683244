"""Whatever a stranger's bytes raise while they are read is their fault, and nothing else is."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pytest
import pytest_asyncio

from profile_export.domain.catalog.batches import RowError
from profile_export.ingest import ingestion, output
from profile_export.ingest.ingestion import ingest
from profile_export.ingest.output import RowsRefusedError
from profile_export.ingest.rows import rows
from profile_export.ingest.task import Expense, IngestTask
from profile_export.processes.messages import ChildDiedError, TooExpensiveError
from profile_export.processes.supervisor import Pool, Supervisor
from tests.contract.ingesting import CRM, Uploader
from tests.hostile_files import damaged, parquet, repeated_text, sound_files, wide_csv, zeros

UNREADABLE = "The file cannot be read: its content breaks the reader. Write it anew, or in another format."


class Panic(BaseException):
    """As extensions written in Rust raise it."""


@pytest.fixture
def uploader(tmp_path: Path) -> Uploader:
    return Uploader(tmp_path)


@pytest_asyncio.fixture(scope="module")
async def pool() -> AsyncIterator[Pool]:
    supervisor = Supervisor()
    yield Pool(supervisor, most=2, warm_for=ingest)
    await supervisor.close()


def raising(error: BaseException) -> Callable[..., NoReturn]:
    def raise_it(*_: Any) -> NoReturn:
        raise error

    return raise_it


@pytest.mark.parametrize(
    "error",
    [
        RecursionError("too deep"),
        OverflowError("too large"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"),
        KeyError("k"),
        pa.ArrowNotImplementedError("not yet"),
        pa.ArrowCapacityError("offset overflow"),
        OSError("Unexpected end of stream"),
        OSError(errno.EINVAL, "Invalid argument"),
        Panic("called `Option::unwrap()` on a `None` value"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_nobody_foresaw_is_told_as_the_files_fault_without_its_words(
    uploader: Uploader, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    monkeypatch.setitem(vars(ingestion)["_FORMATS"], "json_lines", raising(error))

    refusal = uploader.refusal([{"crmId": "1"}], CRM)

    assert refusal.rows == (RowError(None, "FILE_UNREADABLE", UNREADABLE),)
    assert refusal.__cause__ is error


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.ENOENT, errno.EROFS])
@pytest.mark.parametrize("place", ["reading", "writing"])
def test_what_our_own_disk_raises_stays_what_it_is(
    uploader: Uploader, monkeypatch: pytest.MonkeyPatch, number: int, place: str
) -> None:
    error = OSError(number, os.strerror(number))
    if place == "reading":
        monkeypatch.setitem(vars(ingestion)["_FORMATS"], "json_lines", raising(error))
    else:
        monkeypatch.setattr(output, "write_data_file", raising(error))

    with pytest.raises(OSError, match=os.strerror(number)) as raised:
        uploader.ingest([{"crmId": "1"}], CRM)

    assert raised.value is error


@pytest.mark.parametrize(
    "error", [OSError("Arrow says no number"), OSError(errno.EFBIG, "File too large")], ids=["none", "EFBIG"]
)
def test_an_error_of_writing_is_never_the_files(
    uploader: Uploader, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    monkeypatch.setattr(output, "write_data_file", raising(error))

    with pytest.raises(OSError, match=r"no number|too large"):
        uploader.ingest([{"crmId": "1"}], CRM)


def test_rows_are_checked_behind_the_same_boundary(
    uploader: Uploader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "check_record", raising(Panic("of a rule")))

    assert uploader.refused([{"crmId": "1"}], CRM) == (RowError(None, "FILE_UNREADABLE", UNREADABLE),)


# --- Judged before decoding ---


def one_row(columns: int) -> bytes:
    return parquet(pa.table({f"c{number}": [1] for number in range(columns)}))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("made", "told"),
    [
        (
            partial(zeros, 50_000_000),
            "50000000 values of 'list.list.element' in 1 rows, but a row may have 100000",
        ),
        (partial(zeros, 100_001), "100001 values"),
        (partial(one_row, columns=10_001), "10001 columns, but may have 10000"),
        (lambda: b"PAR1" + b"\xff\xff\xff\x7f" + b"PAR1", "a footer of 2147483647 bytes"),
    ],
    ids=["zeros", "one more", "columns", "footer"],
)
def test_a_footer_that_says_too_much_is_enough_to_refuse_a_file(
    uploader: Uploader, made: Callable[[], bytes], told: str
) -> None:
    [error] = uploader.refused(made(), CRM, upload_format="parquet")

    assert error.code == "FILE_INVALID"
    assert told in error.message


def test_text_of_a_dictionary_is_taken_a_piece_at_a_time(uploader: Uploader) -> None:
    result = uploader.ingest(repeated_text(300, 90_000), CRM, upload_format="parquet", bytes_held=4_000_000)

    assert result.rows == 300
    assert len(result.files) > 3


@pytest.mark.parametrize("depth", [65, 40_000])
def test_a_header_of_csv_cannot_nest_without_end(uploader: Uploader, depth: int) -> None:
    sent = ("crmId," + ".".join("a" * depth) + "\n1,1\n").encode()

    [error] = uploader.refused(sent, CRM, upload_format="csv")

    assert error.message == "The header has a name in column 2 that is nested deeper than 64 levels."


# --- Damage ---


async def outcome(pool: Pool, task: IngestTask, byte_count: int) -> str:
    """How ingestion of a damaged file ends: anything else than this raises."""
    limits = Expense(cpu_seconds=10, cpu_seconds_per_mib=0).limits(byte_count)
    try:
        await pool.run(ingest, task, "tenant", limits)
    except RowsRefusedError as refused:
        return refused.rows[0].code
    except TooExpensiveError:
        return "INGEST_TOO_EXPENSIVE"
    except ChildDiedError as died:
        if not died.is_crash:
            raise
        return "FILE_UNREADABLE"
    return "TAKEN"


@pytest.mark.parametrize("kind", ["json_lines", "json_array", "csv", "parquet"])
@pytest.mark.parametrize("count", [15, pytest.param(500, marks=[pytest.mark.slow, pytest.mark.timeout(600)])])
async def test_a_damaged_file_is_taken_or_refused(
    uploader: Uploader, pool: Pool, kind: str, count: int
) -> None:
    dice = random.Random(f"{kind} {count}")
    sound = sound_files()[kind]
    ends: dict[str, int] = {}

    for _ in range(count):
        sent = damaged(sound, dice)
        task = uploader.task(sent, CRM, upload_format=kind)
        end = await outcome(pool, task, len(sent))
        ends[end] = ends.get(end, 0) + 1

    assert ends.get("INGEST_TOO_EXPENSIVE", 0) <= count // 50
    assert sum(ends.values()) == count


@pytest.mark.parametrize(
    ("sent", "kind", "told"),
    [
        pytest.param(repeated_text(100_000, 90_000), "parquet", "processor time", id="text, 9 GB"),
        pytest.param(repeated_text(10_000, 5_000_000), "parquet", "memory", id="one long text"),
        pytest.param(wide_csv(4_900, 1_500), "csv", "processor time", id="cells"),
    ],
)
async def test_what_is_small_to_send_and_dear_to_read_ends_with_its_limit(
    uploader: Uploader, pool: Pool, sent: bytes, kind: str, told: str
) -> None:
    # Only the limit that is told may be reached, however slow the machine.
    expense = Expense(cpu_seconds=1 if told == "processor time" else 30, cpu_seconds_per_mib=0, memory_mb=700)
    task = replace(uploader.task(sent, CRM, upload_format=kind), bytes_held=expense.bytes_held)

    with pytest.raises(TooExpensiveError, match=told):
        await pool.run(ingest, task, "tenant", replace(expense.limits(len(sent)), seconds=None))
