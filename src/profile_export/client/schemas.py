"""Calls about schemas."""

from collections.abc import Sequence

from profile_export.client.calls import PAGE, Calls
from profile_export.v1 import schema_service_pb2 as pb
from profile_export.v1.dataset_pb2 import IdentityField
from profile_export.v1.schema_pb2 import Schema, UnionSchema


class SchemaCalls(Calls):
    """Calls about schemas."""

    async def create_schema(
        self, document: str, *, referenced: Sequence[str] = (), identities: Sequence[IdentityField] = ()
    ) -> pb.CreateSchemaResponse:
        """Register an XDM JSON Schema document; with the content of its newest version it is that version.

        Args:
            document: JSON text.
            referenced: Other documents that `$ref` names, registered in the same step: all or none.
            identities: Fields that hold identities in every dataset of the schema.
        """
        request = pb.CreateSchemaRequest(
            document=document, referenced_documents=referenced, identity_fields=identities
        )
        return await self._call(self._schemas.CreateSchema, request)

    async def get_schema(self, schema_id: str, version: int | None = None) -> Schema:
        """Look a schema up; None: its newest version."""
        request = pb.GetSchemaRequest(schema_id=schema_id, version=version)
        return (await self._call(self._schemas.GetSchema, request)).schema

    async def list_schemas(self) -> list[Schema]:
        """List the newest version of every schema of the tenant and the built-in ones, without their fields."""
        pages = self._pages(self._schemas.ListSchemas, pb.ListSchemasRequest(page_size=PAGE))
        return [schema async for page in pages for schema in page.schemas]

    async def get_union_schema(self, schema_name: str) -> UnionSchema:
        """Return the merge of the schemas of all source datasets of a class, such as `_xdm.context.profile`."""
        request = pb.GetUnionSchemaRequest(schema_name=schema_name)
        return (await self._call(self._schemas.GetUnionSchema, request)).union_schema
