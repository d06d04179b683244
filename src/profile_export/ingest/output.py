"""Telling a fault of our own disk from one of the file that is read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class OutputFailedError(Exception):
    """Writing what ingestion makes has failed; `error` says how."""

    def __init__(self, error: OSError) -> None:
        super().__init__(error)
        self.error = error


@contextmanager
def writing() -> Iterator[None]:
    """Set errors of the disk apart from those of reading, which look the same.

    Raises:
        OutputFailedError: The disk failed.
    """
    try:
        yield
    except OSError as error:
        raise OutputFailedError(error) from error
