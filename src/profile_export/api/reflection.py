"""Reflection under both of its names: `v1`, and `v1alpha`, which is all that grpc brings and that older clients ask."""

from __future__ import annotations

from collections.abc import Iterable

import grpc.aio
from google.protobuf import descriptor_pool, json_format
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_reflection.v1alpha import reflection, reflection_pb2

ALPHA: str = reflection.SERVICE_NAME
NAME = "grpc.reflection.v1.ServerReflection"
_METHOD = "ServerReflectionInfo"


class _Reflection(reflection.aio.ReflectionServicer):  # type: ignore[misc]  # it comes without types
    """Knows methods by their names, too, which the library does not find."""

    def _file_containing_symbol(
        self, request: reflection_pb2.ServerReflectionRequest, fully_qualified_name: str
    ) -> reflection_pb2.ServerReflectionResponse:
        service, _, method = fully_qualified_name.rpartition(".")
        try:
            known = method in descriptor_pool.Default().FindServiceByName(service).methods_by_name
        except KeyError:
            known = False
        return super()._file_containing_symbol(request, service if known else fully_qualified_name)


def add_reflection(server: grpc.aio.Server, services: Iterable[str]) -> None:
    """Serve reflection of these services and of itself; both names take and give the same bytes."""
    _describe()
    servicer = _Reflection((*services, NAME, ALPHA))
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    for name in (NAME, ALPHA):
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, {_METHOD: handler}),))


def _describe() -> None:
    """Have `v1` described where all of the contract is: its messages are those of `v1alpha` under another package."""
    pool = descriptor_pool.Default()
    try:
        pool.FindFileContainingSymbol(NAME)
    except KeyError:
        alpha = FileDescriptorProto()
        reflection_pb2.DESCRIPTOR.CopyToProto(alpha)
        renamed = json_format.MessageToJson(alpha).replace("v1alpha", "v1")
        pool.AddSerializedFile(json_format.Parse(renamed, FileDescriptorProto()).SerializeToString())
