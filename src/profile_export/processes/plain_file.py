"""Files that processes lock or mark a folder with: opened only if they are plain ones, and without waiting."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO, Literal

_MODE = 0o666  # what the umask leaves of it


class NotPlainFileError(OSError):
    """Something else is in the place of a plain file. `filename` says where."""

    def __init__(self, path: str) -> None:
        super().__init__(errno.EINVAL, "This is no plain file", path)


def open_plain(path: Path, mode: Literal["rb", "ab"]) -> BinaryIO:
    """Open a file to read it, or to lock it and make it if need be; what it holds is left as it is.

    A pipe would wait for who opens its other end, for ever and deaf to signals; a link might lead to anybody's file.

    Raises:
        NotPlainFileError: It is a folder, a link, a pipe or a device.
        OSError: It cannot be opened.
    """
    return open(path, mode, opener=_open_plain)


def check_plain(path: Path) -> None:
    """See that a file which a library opens is a plain one, or a link to one, or is not there at all.

    Raises:
        NotPlainFileError: It is something else, such as a link that leads nowhere.
    """
    if not os.path.lexists(path):
        return
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if error.errno not in {errno.ENOENT, errno.ELOOP}:
            raise
        raise NotPlainFileError(str(path)) from error
    if not stat.S_ISREG(mode):
        raise NotPlainFileError(str(path))


def _open_plain(path: str, flags: int) -> int:
    # To open a device may already do something, so this is asked first, and again of what was opened.
    if os.path.lexists(path) and not stat.S_ISREG(os.lstat(path).st_mode):
        raise NotPlainFileError(path)
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW, _MODE)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotPlainFileError(path)
    return descriptor
