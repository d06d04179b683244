"""What the system under a server refuses is told as its fault, for a while, and never as an error of ours."""

from __future__ import annotations

import errno
import os
import threading

import pytest

from profile_export.api.status import system_refusal

REASONS = {
    "DISK_FULL": ("ENOSPC", "EDQUOT", "EFBIG"),
    "DISK_READ_ONLY": ("EROFS",),
    "SYSTEM_LIMIT": ("EMFILE", "ENFILE", "EAGAIN", "ENOLCK", "ENOMEM"),
    "DISK_FAILED": (
        *("EIO", "ENXIO", "ENODEV", "EBUSY", "ENODATA", "EBADMSG", "EUCLEAN", "EREMOTEIO", "ENOMEDIUM"),
        *("ESTALE", "ENOLINK", "ENETDOWN", "ENETUNREACH", "ENOTCONN", "ESHUTDOWN", "ETIMEDOUT", "EHOSTDOWN"),
        *("EHOSTUNREACH", "EACCES", "EPERM", "ENOENT", "ENOTDIR", "EISDIR", "EEXIST", "ELOOP"),
    ),
}


@pytest.mark.parametrize(
    ("reason", "name"), [(reason, name) for reason in REASONS for name in REASONS[reason]]
)
def test_a_fault_of_the_system_has_a_reason_a_way_out_and_a_time_to_come_back(reason: str, name: str) -> None:
    refusal = system_refusal(OSError(getattr(errno, name), "words of the system", "/a/place"))

    assert refusal
    assert refusal.reason == reason
    assert refusal.retry_after
    assert refusal.message.startswith("The server's ")
    assert refusal.message.endswith(", then send the same call again.")
    assert ". " in refusal.message
    assert "/a/place" not in refusal.message


def test_a_system_that_gives_no_further_thread_is_at_a_limit() -> None:
    before = threading.stack_size(2**46)
    try:
        with pytest.raises(RuntimeError) as caught:
            threading.Thread(target=int).start()
    finally:
        threading.stack_size(before)

    refusal = system_refusal(caught.value)

    assert refusal
    assert refusal.reason == "SYSTEM_LIMIT"
    assert system_refusal(RuntimeError("ours")) is None


@pytest.mark.parametrize(
    "error",
    [
        *(
            OSError(number, os.strerror(number))
            for number in (errno.EINVAL, errno.EBADF, errno.EPIPE, errno.ECONNRESET)
        ),
        OSError("without a number"),
        TimeoutError(),
        ValueError(errno.ENOSPC),
    ],
    ids=repr,
)
def test_what_may_be_a_fault_of_ours_is_none_of_the_system(error: Exception) -> None:
    assert system_refusal(error) is None
