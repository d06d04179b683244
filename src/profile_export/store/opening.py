"""What keeps a database from being opened."""

from __future__ import annotations


class CannotOpenError(Exception):
    """The database cannot be opened. Its text is one line with the way out."""


class StoreMissingError(CannotOpenError):
    """There is no store in the database, and none may be made. Nothing has been changed."""
