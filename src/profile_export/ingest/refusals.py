"""What is refused of an upload: single rows, as many as its error budget allows, or the whole of it."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from profile_export.domain.batch import RejectedRow, RowError
from profile_export.domain.learning import ValueRefusedError
from profile_export.domain.reasons import Reason
from profile_export.domain.schema import TypeConflictError, dotted_path
from profile_export.ingest.rejected import REJECTED_FILE, RejectedWriter, kept_text
from profile_export.ingest.task import IngestTask

MOST_TOLD = 100
"""How many refused rows are told at once."""
_MOST_CHARACTERS = 1_000


class RowsRefusedError(Exception):
    """An upload that cannot be stored, so that nothing of it is.

    `rows` are the first of the `rejected_rows` that were found before reading ended, at most 100; or the one error that
    is about the file, whose code is FILE_INVALID or whose row is None.
    """

    def __init__(self, rows: tuple[RowError, ...], rejected_rows: int) -> None:
        super().__init__(rows, rejected_rows)  # what travels between processes
        self.rows = rows
        self.rejected_rows = rejected_rows

    def __str__(self) -> str:
        return f"row {self.rows[0].row}: {self.rows[0].message}"


class FileRefusedError(Exception):
    """A file that is not what its format says: no row behind this point can be told from another.

    `row` is the number of the row where that is known.
    """

    def __init__(self, message: str, row: int | None = None, reason: Reason = Reason.FILE_INVALID) -> None:
        super().__init__(message)
        self.error = RowError(row, reason.value, _told(message))


class Refusals:
    """Collects the rejected rows of an upload; a context that writes them to `rejected.parquet`.

    The file is there if there is any such row, whether the upload is accepted or refused.
    """

    def __init__(self, task: IngestTask) -> None:
        self._allowed = task.max_bad_records
        # Somebody who corrects an upload wants to see more than the first row of many.
        self._most = max(task.max_bad_records, MOST_TOLD) + 1
        self._writer = RejectedWriter(task.folder / REJECTED_FILE)
        self._first: list[RowError] = []
        self.count = 0

    def __enter__(self) -> Self:
        self._writer.discard()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, RowsRefusedError):
            self._writer.finish()
        else:
            self._writer.discard()

    @property
    def first(self) -> tuple[RowError, ...]:
        """The first 100 rejected rows."""
        return tuple(self._first)

    def restart(self) -> None:
        """Forget everything: the upload is read once more, and what that rejects is what counts."""
        self._writer.discard()
        self._first.clear()
        self.count = 0

    def add(self, row: int, error: ValueRefusedError | TypeConflictError, text: str | bytes) -> None:
        """Note a rejected row.

        Args:
            row: Its number from 1, greater than all before.
            error: Why.
            text: The row as sent.

        Raises:
            RowsRefusedError: There are so many of them that reading on is of no use.
        """
        told = row_error(row, error)
        if self.count < MOST_TOLD:
            self._first.append(told)
        self._writer.add(RejectedRow(row, told.code, told.message, told.path, kept_text(text)))
        self.count += 1
        if self.count == self._most:
            self.settle()

    def settle(self) -> None:
        """Go on only if no more rows were rejected than may be.

        Raises:
            RowsRefusedError: There were more.
        """
        if self.count > self._allowed:
            raise RowsRefusedError(self.first, self.count)


def row_error(row: int | None, error: ValueRefusedError | TypeConflictError) -> RowError:
    """Return a refusal as it is told."""
    if isinstance(error, TypeConflictError):
        code, message = Reason.FIELD_TYPE_CONFLICT, error.message
    else:
        code, message = error.code, error.reason
    return RowError(row, code.value, _told(message), _told(dotted_path(error.path)))


def _told(text: str) -> str:
    """Cut a text that holds a name without end, and write half surrogate pairs so that it can be stored."""
    cut = text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}…"
    return cut.encode(errors="backslashreplace").decode()
