"""gRPC's health service, whose watches end with the server."""

from __future__ import annotations

import asyncio
from typing import Any

from grpc_health.v1 import health, health_pb2

from profile_export.api.status import server_draining


class Health(health.aio.HealthServicer):  # type: ignore[misc]  # it comes without types
    """Health of the services of a server.

    A watch of grpc's own has no end: a load balancer that holds one would hold up every stop of the server, until the
    time for calls to finish is over.
    """

    def __init__(self) -> None:
        super().__init__()
        self._ending = asyncio.Event()

    async def List(
        self, request: health_pb2.HealthListRequest, context: Any
    ) -> health_pb2.HealthListResponse:
        """Tell the health of every service; grpc's own servicer has everything but this."""
        return health_pb2.HealthListResponse(
            statuses={
                service: health_pb2.HealthCheckResponse(status=status)
                for service, status in self._server_status.items()
            }
        )

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Any) -> None:
        """Tell each change of a service's health, until the server stops."""
        told = asyncio.ensure_future(super().Watch(request, context))
        ending = asyncio.ensure_future(self._ending.wait())
        try:
            await asyncio.wait({told, ending}, return_when=asyncio.FIRST_COMPLETED)
            if told.done():
                await told
        finally:
            told.cancel()
            ending.cancel()
        raise server_draining()

    def end_watches(self) -> None:
        """End all watches, which have been told by now that nothing is served any more."""
        self._ending.set()
