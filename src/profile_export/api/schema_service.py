"""SchemaService: schemas, and the unions of classes."""

from __future__ import annotations

from functools import partial

from profile_export.api.convert import datasets as convert
from profile_export.api.convert.lists import Pages, fitting
from profile_export.api.convert.values import given, required
from profile_export.api.interceptors import Context, current_tenant
from profile_export.application.datasets import DatasetUseCases
from profile_export.application.doors import compute_if
from profile_export.application.schemas import SchemaUseCases
from profile_export.domain.catalog.datasets import SCHEMA_LIST
from profile_export.domain.schemas.types import is_wide
from profile_export.v1 import schema_service_pb2 as pb
from profile_export.v1.schema_service_pb2_grpc import SchemaServiceServicer


class SchemaService(SchemaServiceServicer):
    """Converts calls about schemas."""

    def __init__(self, schemas: SchemaUseCases, datasets: DatasetUseCases, pages: Pages) -> None:
        self._schemas, self._datasets, self._pages = schemas, datasets, pages

    async def CreateSchema(
        self, request: pb.CreateSchemaRequest, context: Context
    ) -> pb.CreateSchemaResponse:
        schema, replayed = await self._schemas.register(
            current_tenant(),
            request.document,
            request.referenced_documents,
            convert.identity_fields(request.identity_fields),
        )
        return await compute_if(
            is_wide([schema.fields]),
            lambda: pb.CreateSchemaResponse(schema=convert.schema(schema), replayed=replayed),
        )

    async def GetSchema(self, request: pb.GetSchemaRequest, context: Context) -> pb.GetSchemaResponse:
        schema_id = required(request.schema_id, "schema_id")
        schema = await self._schemas.get(current_tenant(), schema_id, given(request, "version"))
        return await compute_if(
            is_wide([schema.fields]),
            lambda: pb.GetSchemaResponse(schema=convert.schema(schema)),
        )

    async def ListSchemas(self, request: pb.ListSchemasRequest, context: Context) -> pb.ListSchemasResponse:
        page = await self._schemas.list(current_tenant(), await self._pages.among(SCHEMA_LIST, request))
        schemas, token = fitting(page, partial(convert.schema, listed=True))
        return pb.ListSchemasResponse(schemas=schemas, next_page_token=token)

    async def GetUnionSchema(
        self, request: pb.GetUnionSchemaRequest, context: Context
    ) -> pb.GetUnionSchemaResponse:
        name = required(request.schema_name, "schema_name")
        fields, sources = await self._datasets.union(current_tenant(), name)
        return await compute_if(
            is_wide([fields]),
            lambda: pb.GetUnionSchemaResponse(union_schema=convert.union_schema(name, fields, sources)),
        )
