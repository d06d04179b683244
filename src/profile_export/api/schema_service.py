"""SchemaService: in the contract, not built yet."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TypeAlias, TypeVar

import grpc.aio

from profile_export.domain.errors import UnimplementedError
from profile_export.v1 import schema_service_pb2 as pb
from profile_export.v1.schema_service_pb2_grpc import SchemaServiceServicer

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")
_Context: TypeAlias = grpc.aio.ServicerContext[_Request, Awaitable[_Response]]


class SchemaService(SchemaServiceServicer):
    """Refuses every method."""

    async def CreateSchema(
        self,
        request: pb.CreateSchemaRequest,
        context: _Context[pb.CreateSchemaRequest, pb.CreateSchemaResponse],
    ) -> pb.CreateSchemaResponse:
        raise UnimplementedError.of_method("CreateSchema")

    async def GetSchema(
        self, request: pb.GetSchemaRequest, context: _Context[pb.GetSchemaRequest, pb.GetSchemaResponse]
    ) -> pb.GetSchemaResponse:
        raise UnimplementedError.of_method("GetSchema")

    async def ListSchemas(
        self, request: pb.ListSchemasRequest, context: _Context[pb.ListSchemasRequest, pb.ListSchemasResponse]
    ) -> pb.ListSchemasResponse:
        raise UnimplementedError.of_method("ListSchemas")

    async def GetUnionSchema(
        self,
        request: pb.GetUnionSchemaRequest,
        context: _Context[pb.GetUnionSchemaRequest, pb.GetUnionSchemaResponse],
    ) -> pb.GetUnionSchemaResponse:
        raise UnimplementedError.of_method("GetUnionSchema")
