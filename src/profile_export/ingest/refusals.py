"""Why an upload is refused: rows with their numbers and reasons, collected while it is read."""

from __future__ import annotations

from profile_export.domain.batch import RowError
from profile_export.domain.learning import ValueRefusedError
from profile_export.domain.schema import TypeConflictError

MOST_KEPT = 100
"""How many refused rows are told; reading stops there."""


class RowsRefusedError(Exception):
    """An upload that cannot be stored, so that nothing of it is.

    `rows` are the first refused rows, at least one and at most 100; a row of None means the file as a whole.
    """

    def __init__(self, rows: tuple[RowError, ...]) -> None:
        super().__init__(rows)  # what travels between processes
        self.rows = rows

    def __str__(self) -> str:
        return f"row {self.rows[0].row}: {self.rows[0].reason}"


class Refusals:
    """Collects refused rows."""

    def __init__(self) -> None:
        self._rows: list[RowError] = []

    def add(self, row: int | None, error: ValueRefusedError | TypeConflictError) -> None:
        """Note a refused row, counted from 1; None means the upload as a whole.

        Raises:
            RowsRefusedError: There are enough of them.
        """
        reason = error.message if isinstance(error, TypeConflictError) else error.reason
        self._rows.append(RowError(row, reason))
        if len(self._rows) == MOST_KEPT:
            self.settle()

    def settle(self) -> None:
        """Go on only if nothing was refused.

        Raises:
            RowsRefusedError: Something was; its rows are in their order.
        """
        if self._rows:
            raise RowsRefusedError(tuple(sorted(self._rows, key=lambda error: error.row or 0)))
