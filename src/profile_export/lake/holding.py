"""Who uses a lake: every process that does holds a shared lock for as long as it lives."""

from __future__ import annotations

import errno
import fcntl
from pathlib import Path
from typing import BinaryIO

from profile_export.processes.plain_file import open_plain

_NOT_LOCKABLE = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
"""What a file system says that knows no locks: who uses the lake cannot be told there."""


class Holding:
    """This process's lock on the lake of a data directory; it goes with the process."""

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / "lake.lock"
        self._file: BinaryIO | None = None

    def take(self) -> None:
        """Use the lake beside others. Waits for who takes it over at the moment.

        Raises:
            OSError: The data directory cannot be used.
        """
        self.let_go()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open_plain(self._path, "ab")
        self._lock(fcntl.LOCK_SH)

    def take_alone(self) -> bool:
        """Keep others from using the lake, until it is taken again or let go; False if another process uses it."""
        try:
            self._lock(fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def let_go(self) -> None:
        """Use the lake no longer."""
        if self._file:
            self._file.close()
            self._file = None

    def _lock(self, how: int) -> None:
        if self._file is None:
            return
        try:
            fcntl.flock(self._file, how)
        except OSError as error:
            if error.errno not in _NOT_LOCKABLE:
                raise
