"""A server with nothing behind it: every watch gets the same bytes at once, and then waits.

    python -m tests.watch.bare_server

Like `profile-export serve` it prints `listening on HOST:PORT`.
"""

from __future__ import annotations

import asyncio
from typing import Any

import grpc.aio

from profile_export.v1 import export_service_pb2 as es
from profile_export.v1 import job_pb2
from tests.watch.watcher import METHOD

MESSAGE = es.WatchJobResponse(revision=1, job=job_pb2.ExportJob(id=1, revision=1)).SerializeToString()


async def watch(_request: es.WatchJobRequest, context: grpc.aio.ServicerContext[Any, Any]) -> None:
    await context.write(MESSAGE)
    await asyncio.Event().wait()


async def serve() -> None:
    server = grpc.aio.server(
        options=(("grpc.so_reuseport", 0), ("grpc.server.max_pending_requests", 100_000))
    )
    _, service, method = METHOD.split("/")
    handlers: Any = {
        method: grpc.unary_stream_rpc_method_handler(
            watch,
            request_deserializer=es.WatchJobRequest.FromString,
            response_serializer=None,
        )
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"listening on 127.0.0.1:{port}", flush=True)  # noqa: T201 - as said
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve())
