"""SchemaService: registered schemas, and the union schemas of classes."""

from __future__ import annotations

from functools import partial
from typing import Any, TypeAlias

import grpc.aio

from profile_export.api import convert_datasets
from profile_export.api.convert import required
from profile_export.api.convert_fields import identity_fields
from profile_export.api.pages import Pages, fitting
from profile_export.api.tenancy import current_tenant
from profile_export.domain.catalog import CLASSES
from profile_export.domain.errors import NotFoundError
from profile_export.domain.unions import union_schema
from profile_export.domain.width import is_wide
from profile_export.ingest.registration import Registration
from profile_export.processes.computing import compute_if
from profile_export.store.catalog import Catalog
from profile_export.store.schemas import Schemas
from profile_export.v1 import schema_service_pb2 as pb
from profile_export.v1.schema_service_pb2_grpc import SchemaServiceServicer

_Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class SchemaService(SchemaServiceServicer):
    """Serves schemas from the store."""

    def __init__(self, catalog: Catalog, schemas: Schemas, registration: Registration, pages: Pages) -> None:
        self._catalog = catalog
        self._schemas = schemas
        self._registration = registration
        self._pages = pages

    async def CreateSchema(
        self, request: pb.CreateSchemaRequest, context: _Context
    ) -> pb.CreateSchemaResponse:
        schema, replayed = await self._registration.register(
            current_tenant(),
            request.document,
            request.referenced_documents,
            identity_fields(request.identity_fields),
        )
        return await compute_if(
            is_wide([schema.fields]),
            lambda: pb.CreateSchemaResponse(schema=convert_datasets.schema(schema), replayed=replayed),
        )

    async def GetSchema(self, request: pb.GetSchemaRequest, context: _Context) -> pb.GetSchemaResponse:
        schema_id = required(request.schema_id, "schema_id")
        version = request.version if request.HasField("version") else None
        schema = await self._schemas.get(current_tenant(), schema_id, version)
        return await compute_if(
            is_wide([schema.fields]), lambda: pb.GetSchemaResponse(schema=convert_datasets.schema(schema))
        )

    async def ListSchemas(self, request: pb.ListSchemasRequest, context: _Context) -> pb.ListSchemasResponse:
        page = await self._schemas.list(current_tenant(), await self._pages.of_all(request))
        schemas, token = fitting(page, partial(convert_datasets.schema, listed=True))
        return pb.ListSchemasResponse(schemas=schemas, next_page_token=token)

    async def GetUnionSchema(
        self, request: pb.GetUnionSchemaRequest, context: _Context
    ) -> pb.GetUnionSchemaResponse:
        name = required(request.schema_name, "schema_name")
        if name not in CLASSES:
            raise NotFoundError.of("schema", name)
        sources = await self._catalog.sources(current_tenant())
        of_class = [dataset for dataset in sources if dataset.kind is CLASSES[name]]

        def answer() -> pb.GetUnionSchemaResponse:
            fields = union_schema(sources, CLASSES[name])
            return pb.GetUnionSchemaResponse(
                union_schema=convert_datasets.union_schema(name, fields, of_class)
            )

        return await compute_if(is_wide(source.fields for source in sources), answer)
