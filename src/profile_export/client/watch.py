"""Watches that outlive the connection."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from datetime import timedelta
from typing import Any, TypeVar

import grpc.aio
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from profile_export.client.errors import BackOff, ClientError, messages
from profile_export.v1.export_service_pb2 import (
    JobChange,
    WatchJobRequest,
    WatchJobResponse,
    WatchJobsRequest,
    WatchJobsResponse,
)
from profile_export.v1.job_pb2 import JobProgress, JobState

_HEARTBEAT_SECONDS = 15
_SILENCE_SECONDS = 3.0 * _HEARTBEAT_SECONDS
FINAL_STATES = (JobState.JOB_STATE_SUCCEEDED, JobState.JOB_STATE_FAILED, JobState.JOB_STATE_CANCELLED)
"""A job in one of these does not change any more."""

# A call that arrives just as a server stops may be told CANCELLED, which nobody here has asked for.
_LOST = {"UNAVAILABLE", "CANCELLED"}
_Message = TypeVar("_Message", bound=Message)


async def watch_job(
    open_call: "Callable[[WatchJobRequest], grpc.aio.UnaryStreamCall[Any, WatchJobResponse]]",
    patience: timedelta,
    request: WatchJobRequest,
) -> AsyncGenerator[WatchJobResponse]:
    """Yield what happens to a job, each transition once and each progress, until its final state has been given."""
    request.heartbeat_interval.CopyFrom(Duration(seconds=_HEARTBEAT_SECONDS))
    told = JobProgress()
    async with aclosing(_resuming(lambda: open_call(request), patience)) as received:
        async for message in received:
            # A call that goes on begins after `after_revision`, but with the progress that was told already.
            request.after_revision = message.revision
            if message.HasField("progress"):
                if message.progress == told:
                    continue
                told = message.progress
            if message.transitions or message.HasField("job") or message.HasField("progress"):
                yield message
            if message.HasField("job") and message.job.state in FINAL_STATES:
                # What the call still has to say is that it is over; if it breaks off instead, nothing is missing.
                return


async def watch_jobs(
    open_call: "Callable[[WatchJobsRequest], grpc.aio.UnaryStreamCall[Any, WatchJobsResponse]]",
    patience: timedelta,
    request: WatchJobsRequest,
) -> AsyncGenerator[WatchJobsResponse]:
    """Yield the list of the jobs and then every change, each once, for as long as it is asked for more."""
    request.heartbeat_interval.CopyFrom(Duration(seconds=_HEARTBEAT_SECONDS))
    listed: dict[int, int] = {}
    async with aclosing(_resuming(lambda: open_call(request), patience)) as received:
        async for message in received:
            complete = message.list_complete or request.HasField("after_revision")
            if not complete or message.list_complete:
                # A list that broke off begins anew.
                new = [change for change in message.changes if not _known(change, listed)]
                del message.changes[:]
                message.changes.extend(new)
            if complete:
                request.after_revision = message.revision
                listed.clear()
            if message.changes or message.list_complete:
                yield message


def _known(change: JobChange, listed: dict[int, int]) -> bool:
    """Whether an entry of the list has been told already; note it if not."""
    if not change.HasField("job"):
        return False
    known = listed.get(change.job_id) == change.job.revision
    listed[change.job_id] = change.job.revision
    return known


async def _resuming(
    open_call: "Callable[[], grpc.aio.UnaryStreamCall[Any, _Message]]", patience: timedelta
) -> AsyncGenerator[_Message]:
    """Yield the messages of a call and, where it breaks off, of the next one, until one comes to its end."""
    back_off = BackOff(patience)
    while True:
        call = open_call()
        try:
            async for message in messages(call, _SILENCE_SECONDS):
                back_off.heard()
                yield message
            return
        except ClientError as error:
            if error.code not in _LOST:
                raise
            await back_off.wait(error)
        finally:
            call.cancel()
