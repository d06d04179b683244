"""A server of ours without workers: its jobs wait, and move only when they are cancelled."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.duration_pb2 import Duration

from benchmarks import ours
from benchmarks.http2 import Caller
from benchmarks.server import Server, running
from profile_export.client import Client, ExportJob, export_spec
from profile_export.v1 import export_service_pb2 as pb

_SERVICE = "/profile_export.v1.ExportService"
CREATE, CANCEL, GET = f"{_SERVICE}/CreateJob", f"{_SERVICE}/CancelJob", f"{_SERVICE}/GetJob"
WATCH_JOB, WATCH_JOBS = f"{_SERVICE}/WatchJob", f"{_SERVICE}/WatchJobs"
_LONGEST_SILENCE = Duration(seconds=60)
"""So that no heartbeat comes between."""


@dataclass(frozen=True)
class Held:
    """A running server, and the request of a job on it."""

    server: Server
    create_request: bytes

    async def create(self, caller: Caller) -> int:
        """Make a job, and return its id."""
        return pb.CreateJobResponse.FromString(await caller.answer(CREATE, self.create_request)).job.id

    @staticmethod
    async def cancel(caller: Caller, job_id: int) -> ExportJob:
        """Give a job its final state."""
        return pb.CancelJobResponse.FromString(await caller.answer(CANCEL, cancel_request(job_id))).job


@asynccontextmanager
async def holding(folder: Path) -> AsyncIterator[Held]:
    """Run a server with its data in a new folder."""
    async with running(_made(folder), 1, None, "--workers", "0") as server:
        async with Client(server.address) as client:
            destination = await ours.destination(client)
        yield Held(server, pb.CreateJobRequest(spec=export_spec(destination)).SerializeToString())


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def cancel_request(job_id: int) -> bytes:
    """Return the request that moves a job, serialised."""
    return pb.CancelJobRequest(job_id=job_id).SerializeToString()


def watch_request(job_id: int) -> bytes:
    """Return the request to watch all moves of a job, serialised."""
    return pb.WatchJobRequest(
        job_id=job_id, after_revision=0, heartbeat_interval=_LONGEST_SILENCE
    ).SerializeToString()


def feed_request(after_revision: int | None) -> bytes:
    """Return the request to watch the changes of all jobs, after a list or after a revision, serialised."""
    return pb.WatchJobsRequest(
        after_revision=after_revision, heartbeat_interval=_LONGEST_SILENCE
    ).SerializeToString()
