"""What a refusal may say, and may not."""

from __future__ import annotations

import re
from collections.abc import Sequence

import grpc
import grpc.aio
from grpc_status import rpc_status

FORBIDDEN = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS}
_OF_GRPC = {
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}
"""How calls end before we see them, or after: no details of ours."""
_OF_THE_CLIENT = "Internal error from Core"
"""What grpc's client says of a call that ended while its messages were still being sent: the server has not said it."""
_LEAKS = re.compile(
    r"Traceback|\.py\b|site-packages|0x[0-9a-f]{8}|<class |<[\w.]+ object"
    r"|\b(?:sqlalchemy|sqlite3?|aiosqlite|asyncpg|psycopg|pyarrow|pydantic|jsonschema_rs|concurrent\.futures)\b"
    r"|\b[A-Z][A-Za-z]+(?:Error|Exception)\b|\bErrno\b|\bSELECT\b|\bINSERT INTO\b|\bUNIQUE constraint\b",
)


def faults_of(
    error: grpc.aio.AioRpcError, sent: Sequence[str], secrets: Sequence[str], *, told_why: bool = True
) -> list[str]:
    """Return what is wrong with a refusal.

    Args:
        error: The refusal.
        sent: Texts of the caller's own, which may come back to it.
        secrets: Texts that no caller may ever be told.
        told_why: It is our contract's, which promises details; health and reflection have none.
    """
    found = []
    if error.details() == _OF_THE_CLIENT:
        return []
    if error.code() in FORBIDDEN:
        found.append(f"{error.code().name}: {error.details()}")
    status = rpc_status.from_call(error)
    if told_why and status is None and error.code() not in _OF_GRPC:
        found.append(f"{error.code().name} without details: {error.details()}")
    texts = [error.details() or "", *(str(detail.value) for detail in (status.details if status else ()))]
    for text in texts:
        own = text
        for one in sorted(sent, key=len, reverse=True):
            if len(one) > 2:
                own = own.replace(one, "")
        if leak := _LEAKS.search(own) or next((one for one in secrets if one in own), None):
            found.append(f"{error.code().name} tells {leak!r}: {text[:1_000]}")
    return found
