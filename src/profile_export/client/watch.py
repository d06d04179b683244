"""A watch of one job that outlives the connection."""

from collections.abc import AsyncGenerator
from datetime import timedelta

from google.protobuf.duration_pb2 import Duration

from profile_export.client.errors import BackOff, ClientError, messages
from profile_export.v1.export_service_pb2 import WatchJobRequest, WatchJobResponse
from profile_export.v1.export_service_pb2_grpc import ExportServiceStub

_HEARTBEAT_SECONDS = 15
_SILENCE_SECONDS = 3.0 * _HEARTBEAT_SECONDS


async def watch(
    exports: ExportServiceStub,
    metadata: tuple[tuple[str, str], ...],
    patience: timedelta,
    request: WatchJobRequest,
) -> AsyncGenerator[WatchJobResponse]:
    """Yield what happens to a job, each transition once, until its final state has been given."""
    request.heartbeat_interval.CopyFrom(Duration(seconds=_HEARTBEAT_SECONDS))
    back_off = BackOff(patience)
    while True:
        call = exports.WatchJob(request, metadata=metadata)
        try:
            async for message in messages(call, _SILENCE_SECONDS):
                back_off.heard()
                while message.transitions and message.transitions[0].revision <= request.after_revision:
                    del message.transitions[0]
                request.after_revision = message.revision
                yield message
            return
        except ClientError as error:
            if error.code != "UNAVAILABLE":
                raise
            await back_off.wait(error)
        finally:
            call.cancel()
