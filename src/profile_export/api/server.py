"""The server: its options, health, reflection, and how it stops."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from profile_export.api.interceptors import CallInterceptor
from profile_export.api.reflection import add_reflection
from profile_export.domain.errors import server_draining
from profile_export.v1 import (
    dataset_service_pb2,
    dataset_service_pb2_grpc,
    export_service_pb2,
    export_service_pb2_grpc,
    profile_service_pb2,
    profile_service_pb2_grpc,
    schema_service_pb2,
    schema_service_pb2_grpc,
)


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


_MIB = 1024 * 1024
_OPTIONS: tuple[tuple[str, int], ...] = (
    # On by default, and then a second server takes the same port without a word and half of the calls.
    ("grpc.so_reuseport", 0),
    # From 1,000 pending calls on grpc refuses at random, with CANCELLED, which no client's policy repeats: thousands
    # of watchers that come back at once must only wait their turn.
    ("grpc.server.max_pending_requests", 100_000),
    ("grpc.server.max_pending_requests_hard_limit", 200_000),
    # Nor, after 30 seconds of that, be cancelled.
    ("grpc.server_max_unrequested_time_in_server", 600),
    # A watch may be silent for long: find out that its client is gone within a minute and a half.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # Clients may do the same, every 10 s; one is early now and then. By default one that pings within five minutes of
    # silence is cut off for it.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 9_000),
    # The contract promises this limit; files come and go in chunks of 1 MiB.
    ("grpc.max_receive_message_length", 4 * _MIB),
    # How much an answer may hold is the client's limit to raise.
    ("grpc.max_send_message_length", -1),
    # grpc's own limit of concurrent calls stays unset on purpose: it would count every idle watch.
)


class BindError(Exception):
    """An address that cannot be listened on. Its text is one line with the way out."""


@dataclass(frozen=True, slots=True)
class Service:
    """A gRPC service: its full name, and what adds its servicer to a server."""

    name: str
    add_to: Callable[[grpc.aio.Server], None]


def contract(
    *,
    datasets: dataset_service_pb2_grpc.DatasetServiceServicer,
    schemas: schema_service_pb2_grpc.SchemaServiceServicer,
    profiles: profile_service_pb2_grpc.ProfileServiceServicer,
    exports: export_service_pb2_grpc.ExportServiceServicer,
) -> tuple[Service, ...]:
    """Return the services of the contract, all of them."""
    return (
        _service(
            dataset_service_pb2, dataset_service_pb2_grpc.add_DatasetServiceServicer_to_server, datasets
        ),
        _service(schema_service_pb2, schema_service_pb2_grpc.add_SchemaServiceServicer_to_server, schemas),
        _service(
            profile_service_pb2, profile_service_pb2_grpc.add_ProfileServiceServicer_to_server, profiles
        ),
        _service(export_service_pb2, export_service_pb2_grpc.add_ExportServiceServicer_to_server, exports),
    )


def _service(module: Any, add: Callable[..., None], servicer: object) -> Service:
    [described] = module.DESCRIPTOR.services_by_name.values()
    return Service(described.full_name, partial(add, servicer))


class GrpcServer:
    """A server that has its port. Made by `create_server`."""

    def __init__(self, server: grpc.aio.Server, calls: CallInterceptor, serving: Health, port: int) -> None:
        self._server = server
        self._calls = calls
        self._health = serving
        self.port = port

    async def start(self) -> None:
        """Begin to answer."""
        await self._server.start()

    async def give_up(self) -> None:
        """Stop at once, begun or not: a server that is never stopped may end the process with SIGABRT."""
        await self._server.stop(None)

    async def drain(
        self,
        *,
        stop_claiming: Callable[[], Awaitable[None]],
        end_watches: Callable[[], Awaitable[None]],
        grace: timedelta,
    ) -> None:
        """Stop without losing anything; returns when the last call has ended.

        Args:
            stop_claiming: Makes the runner take no further job.
            end_watches: Makes every watch raise `server_draining()`.
            grace: How long other calls may take to finish; then they are cancelled.
        """
        await self._health.enter_graceful_shutdown()
        await stop_claiming()
        # Before the watches end, so that none opens behind the back of `end_watches`.
        self._calls.refuse_new_calls()
        await end_watches()
        self._health.end_watches()
        await self._server.stop(grace.total_seconds())


async def create_server(
    services: Sequence[Service],
    *,
    host: str,
    port: int,
    connection_age: timedelta,
    new_request_id: Callable[[], str],
) -> GrpcServer:
    """Make a server with health and reflection, bound to its port, that does not answer yet.

    Args:
        services: What it serves; `contract` gives all of it.
        host: Name or address; an IPv6 address without brackets.
        port: 0 takes any free one.
        connection_age: How old a connection gets, within a tenth, before its client is told to make another one. Calls
            on the old one may take as long again; a watch that does is cut off, and resumes.
        new_request_id: Makes the id of a call that brings none.

    Raises:
        BindError: The address is taken or not one of this machine.
    """
    calls = CallInterceptor(new_request_id)
    age = round(connection_age / timedelta(milliseconds=1))
    # Without an age, clients that connected while one server was down stay with the others for ever.
    ages = (("grpc.max_connection_age_ms", age), ("grpc.max_connection_age_grace_ms", age))
    server = grpc.aio.server(interceptors=[calls], options=(*_OPTIONS, *ages))
    bound = _bind(server, host, port)
    serving = Health()
    health_pb2_grpc.add_HealthServicer_to_server(serving, server)
    for service in services:
        service.add_to(server)
        await serving.set(service.name, health_pb2.HealthCheckResponse.SERVING)
    add_reflection(server, (*(service.name for service in services), health.SERVICE_NAME))
    return GrpcServer(server, calls, serving, bound)


def _bind(server: grpc.aio.Server, host: str, port: int) -> int:
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        return server.add_insecure_port(address)
    except RuntimeError as error:
        raise BindError(
            f"Cannot listen on {address}: it is taken, or not an address of this machine. "
            "Choose another --grpc-address (PROFILE_EXPORT_GRPC_ADDRESS); port 0 takes any free port."
        ) from error
