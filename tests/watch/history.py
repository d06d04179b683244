"""What a client of WatchJob recorded: every message, the connection it came on, and how each connection ended."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import grpc.aio
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from profile_export.v1 import export_service_pb2 as es
from profile_export.v1 import job_pb2

FINAL_STATES = frozenset({job_pb2.JOB_STATE_SUCCEEDED, job_pb2.JOB_STATE_FAILED, job_pb2.JOB_STATE_CANCELLED})


@dataclass(frozen=True)
class Received:
    """A message, as bytes and as what they say; `at` is in seconds since 1970, as all times here."""

    at: float
    raw: bytes
    message: es.WatchJobResponse

    @classmethod
    def of(cls, at: float, raw: bytes) -> Received:
        return cls(at, raw, es.WatchJobResponse.FromString(raw))

    @property
    def is_final(self) -> bool:
        """Whether it gives the final state."""
        return self.message.HasField("job") and self.message.job.state in FINAL_STATES


@dataclass(frozen=True)
class Ended:
    """How a connection ended. `hung_up`: by the client's doing, and then the code says nothing of the server."""

    at: float
    code: str
    reason: str = ""
    retry_seconds: float | None = None
    hung_up: bool = False

    @classmethod
    def of(cls, at: float, error: grpc.aio.AioRpcError, *, hung_up: bool) -> Ended:
        reason, retry_seconds = "", None
        status = rpc_status.from_call(error)
        for detail in status.details if status else ():
            info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
            if detail.Unpack(info):
                reason = info.reason
            elif detail.Unpack(retry):
                retry_seconds = retry.retry_delay.ToTimedelta().total_seconds()
        return cls(at, error.code().name, reason, retry_seconds, hung_up)


@dataclass
class Connection:
    """One call of WatchJob: on which server, from where, and what came of it."""

    number: int
    server: str
    after_revision: int | None
    opened: float
    messages: list[Received] = field(default_factory=list)
    ended: Ended | None = None

    def __str__(self) -> str:
        start = "a snapshot" if self.after_revision is None else self.after_revision
        return f"connection {self.number} (to {self.server}, after {start})"


@dataclass
class History:
    """All that one watcher of one job saw.

    A watcher that `hops` forgets its place whenever it connects again. One that is slow reads on at once from
    `slow_until` on.
    """

    watcher: str
    job_id: int
    hops: bool = False
    slow_until: float = 0.0
    connections: list[Connection] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.watcher} of job {self.job_id}"

    @property
    def is_slow(self) -> bool:
        """Whether it ever was."""
        return self.slow_until > 0

    @property
    def messages(self) -> Iterator[Received]:
        """Everything received, whatever the connection."""
        for connection in self.connections:
            yield from connection.messages

    @property
    def revision(self) -> int | None:
        """The revision of the last message; None before the first."""
        revisions = [received.message.revision for received in self.messages]
        return revisions[-1] if revisions else None

    @property
    def is_over(self) -> bool:
        """Whether the server has said that nothing more will come."""
        ended = self.connections[-1].ended if self.connections else None
        return ended is not None and not ended.hung_up and ended.code != "UNAVAILABLE"


@dataclass(frozen=True)
class Move:
    """One entry of a job's log, read from the store."""

    revision: int
    from_state: str
    to_state: str
    attempt: int
    reason: str
    time: float


Log = tuple[Move, ...]
"""What has really happened to a job, from revision 1 to its end."""


@dataclass(frozen=True)
class Drain:
    """How a server stopped. `begun` are the attempts that it began after it had said that it does not serve."""

    server: str
    asked: float
    not_serving: float
    stopped: float
    begun: int = 0
