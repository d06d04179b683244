"""What keeps a database from being opened."""

from __future__ import annotations

from sqlalchemy.exc import DBAPIError

# SQLSTATE `undefined_table` and `undefined_column`; SQLite has no code for them but a text.
_LACKING = {"42P01", "42703"}
_LACKING_TEXT = "no such "


class CannotOpenError(Exception):
    """The database cannot be opened. Its text is one line with the way out."""


class StoreMissingError(CannotOpenError):
    """There is no store in the database, and none may be made. Nothing has been changed."""


def explained(error: Exception) -> str | None:
    """Say in one sentence what a statement's error says of the database; None: that it is no fault of the database."""
    if not isinstance(error, DBAPIError):
        return None
    cause = error.orig.__cause__ or error.orig if error.orig else None
    text = " ".join(str(cause).split())
    if getattr(cause, "sqlstate", None) in _LACKING or text.startswith(_LACKING_TEXT):
        return f"The database lacks what its version has ({text}): put a backup of it in its place, then start again."
    return None
