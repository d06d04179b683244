"""What the system or disk that a process runs on refuses it: THE table from its error numbers to words and ways out."""

from __future__ import annotations

import errno
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SystemFault:
    """Why the system refuses, with no fault of a caller or of ours.

    `reason` is a stable word. `what` goes on after "The server's", `way_out` is the beginning of a sentence that tells
    an operator what to do.
    """

    reason: str
    what: str
    way_out: str


DISK_FULL = "DISK_FULL"
_DISK_FAILED, _SYSTEM_LIMIT = "DISK_FAILED", "SYSTEM_LIMIT"
# Of broken disks, and of those of the network, or of a program, that are away; not all systems know all of them.
_BROKEN_OR_AWAY = (
    *(
        "EIO",
        "ENXIO",
        "ENODEV",
        "EBUSY",
        "ENODATA",
        "EBADMSG",
        "EUCLEAN",
        "EREMOTEIO",
        "ENOMEDIUM",
        "ESTALE",
        "ENOLINK",
    ),
    *("ENETDOWN", "ENETUNREACH", "ENOTCONN", "ESHUTDOWN", "ETIMEDOUT", "EHOSTDOWN", "EHOSTUNREACH"),
)
_BROKEN = SystemFault(_DISK_FAILED, "disk failed", "See to the disk, and that it is mounted")
_NOT_AS_LEFT = SystemFault(
    _DISK_FAILED,
    "disk lacks a file or folder, or has something else in its place",
    "See that the disk is mounted and as the server left it",
)
_NOT_ALLOWED = SystemFault(
    _DISK_FAILED,
    "system does not let it read and write its files",
    "Let the user whom it runs as read and write there",
)


def _no_more(things: str) -> SystemFault:
    way_out = "End what takes them there, or raise the limit"
    return SystemFault(_SYSTEM_LIMIT, f"system gives it no more {things}", way_out)


_FAULTS = {
    errno.ENOSPC: SystemFault(DISK_FULL, "disk is full", "Free some of it"),
    errno.EDQUOT: SystemFault(
        DISK_FULL, "disk has no room left for its user", "Free some of it, or raise the quota"
    ),
    errno.EFBIG: SystemFault(
        DISK_FULL, "disk or user may have no file as large as this", "Raise the limit of files' sizes"
    ),
    errno.EROFS: SystemFault("DISK_READ_ONLY", "disk is read-only", "Make it writable"),
    errno.EACCES: _NOT_ALLOWED,
    errno.EPERM: _NOT_ALLOWED,
    errno.EMFILE: _no_more("open files"),
    errno.ENFILE: _no_more("open files"),
    errno.EAGAIN: _no_more("processes or locks"),
    errno.ENOLCK: _no_more("processes or locks"),
    errno.ENOMEM: _no_more("memory"),
    **dict.fromkeys((errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP), _NOT_AS_LEFT),
    **{getattr(errno, name): _BROKEN for name in _BROKEN_OR_AWAY if hasattr(errno, name)},
}


# Python says this where the system has given no further thread, and has no error number then.
_NO_THREAD = "can't start new thread"


def system_fault(error: BaseException) -> SystemFault | None:
    """Return what the system refuses; None if the error is another, which may be a fault of ours."""
    if isinstance(error, RuntimeError) and str(error) == _NO_THREAD:
        return _FAULTS[errno.EAGAIN]
    return _FAULTS.get(error.errno or 0) if isinstance(error, OSError) else None
