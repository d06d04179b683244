"""All methods that a server has, by what their descriptors say, and calls of them with bytes instead of messages."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import grpc.aio
from google.protobuf.descriptor import Descriptor, ServiceDescriptor
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from profile_export.v1 import (
    dataset_service_pb2,
    export_service_pb2,
    profile_service_pb2,
    schema_service_pb2,
)

CONTRACT = (dataset_service_pb2, schema_service_pb2, profile_service_pb2, export_service_pb2)
BESIDE = (health_pb2, reflection_pb2)
Metadata = Sequence[tuple[str, str | bytes]]


@dataclass(frozen=True)
class Method:
    path: str
    request: Descriptor
    takes_stream: bool
    gives_stream: bool

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


def methods(*modules: Any) -> list[Method]:
    """Every method of every service of some generated modules."""
    services: list[ServiceDescriptor] = [
        service for module in modules for service in module.DESCRIPTOR.services_by_name.values()
    ]
    return [
        Method(
            f"/{service.full_name}/{method.name}",
            method.input_type,
            method.client_streaming,
            method.server_streaming,
        )
        for service in services
        for method in service.methods
    ]


async def call(
    channel: grpc.aio.Channel,
    method: Method,
    messages: Sequence[bytes],
    metadata: Metadata,
    *,
    seconds: float,
    most_answers: int = 20,
) -> list[bytes]:
    """Send these messages, one where the method takes one, and return what it answers.

    Of a stream of answers no more than so many are read, and none after `seconds`; of another method that is an error.

    Raises:
        grpc.aio.AioRpcError: The call was refused.
    """
    sent = _one_by_one(messages) if method.takes_stream else messages[0]
    kind = f"{_KINDS[method.takes_stream]}_{_KINDS[method.gives_stream]}"
    opened = getattr(channel, kind)(method.path)(sent, metadata=metadata, timeout=seconds)
    if not method.gives_stream:
        return [await opened]
    answers: list[bytes] = []
    try:
        async for answer in opened:
            answers.append(answer)
            if len(answers) == most_answers:
                break
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
            raise
    with suppress(grpc.aio.UsageError):
        opened.cancel()
    return answers


_KINDS = {False: "unary", True: "stream"}


async def _one_by_one(messages: Sequence[bytes]) -> AsyncIterator[bytes]:
    for message in messages:
        yield message
