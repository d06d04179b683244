"""Calls about datasets and schemas."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import timedelta

from google.protobuf.struct_pb2 import Struct

from profile_export.client.calls import Calls, duration, quoted
from profile_export.v1 import dataset_service_pb2 as pb
from profile_export.v1 import schema_service_pb2
from profile_export.v1.dataset_pb2 import (
    Dataset,
    DatasetKind,
    FieldDeclaration,
    IdentityField,
    SchemaRef,
    TagValues,
)
from profile_export.v1.schema_pb2 import Schema, UnionSchema

_BUILT_IN_SCHEMAS = {
    DatasetKind.DATASET_KIND_RECORD: "https://ns.adobe.com/xdm/context/profile",
    DatasetKind.DATASET_KIND_EVENT: "https://ns.adobe.com/xdm/context/experienceevent",
    DatasetKind.DATASET_KIND_UNION: "https://ns.adobe.com/xdm/context/profile__union",
}

Tags = Mapping[str, Sequence[str]]


class DatasetCalls(Calls):
    """Calls about datasets."""

    async def create_dataset(  # noqa: PLR0913 - each is a field of the request
        self,
        name: str,
        schema: DatasetKind.ValueType | str,
        *,
        identities: Sequence[IdentityField] = (),
        declared: Sequence[FieldDeclaration] = (),
        tags: Tags | None = None,
        description: str = "",
        batch_retention: timedelta | None = None,
        request_id: str = "",
    ) -> Dataset:
        """Make a dataset; with the same request_id and content it is the same one.

        Args:
            name: For people; need not be unique.
            schema: The id of a schema, or a kind for the built-in schema of that kind.
            identities: Fields that hold identities, besides those of the schema.
            declared: Types to use instead of learned ones.
            tags: As in the contract. None: no tags.
            description: Free text.
            batch_retention: How long a batch counts from its ingest time on. None: for ever.
            request_id: Key of the caller's. Empty: every call makes a dataset.
        """
        request = pb.CreateDatasetRequest(
            name=name,
            schema_ref=SchemaRef(id=schema if isinstance(schema, str) else _BUILT_IN_SCHEMAS[schema]),
            tags=_tag_values(tags or {}),
            identity_fields=identities,
            declared_fields=declared,
            description=description,
            batch_retention=duration(batch_retention),
            request_id=request_id or str(uuid.uuid4()),
        )
        return (await self._call(self._datasets.CreateDataset, request)).dataset

    async def get_dataset(self, dataset_id: str) -> Dataset:
        """Look a dataset up."""
        request = pb.GetDatasetRequest(dataset_id=dataset_id)
        return (await self._call(self._datasets.GetDataset, request)).dataset

    async def list_datasets(self, name: str | None = None, *, show_deleted: bool = False) -> list[Dataset]:
        """List the datasets of the tenant, oldest first; with `show_deleted`, also those that can be brought back.

        With a `name` they are those that have it.
        """
        condition = "" if name is None else f"name = {quoted(name)}"
        request = pb.ListDatasetsRequest(filter=condition, show_deleted=show_deleted)
        return await self._list(self._datasets.ListDatasets, request, lambda page: page.datasets)

    async def update_dataset(
        self,
        dataset_id: str,
        *,
        name: str | None = None,
        description: str | None = None,
        tags: Tags | None = None,
        declared: Sequence[FieldDeclaration] = (),
        batch_retention: timedelta | None = None,
        etag: str = "",
    ) -> Dataset:
        """Change what is given and leave the rest; at least one change is required.

        Args:
            dataset_id: The dataset.
            name: Its new name. None: unchanged.
            description: Its new description, may be empty. None: unchanged.
            tags: All tags, replacing those it has. Empty: no tags any more. None: unchanged.
            declared: Types to declare or to widen, added to those it has.
            batch_retention: How long a batch counts, also those that do now; zero: for ever. None: unchanged.
            etag: That of the dataset that the change is meant for. Empty: whatever it is like.
        """
        request = pb.UpdateDatasetRequest(
            dataset_id=dataset_id,
            etag=etag,
            name=name,
            description=description,
            tags=None if tags is None else pb.DatasetTags(entries=_tag_values(tags)),
            add_declared_fields=declared,
            batch_retention=duration(batch_retention),
        )
        return (await self._call(self._datasets.UpdateDataset, request)).dataset

    async def delete_dataset(self, dataset_id: str) -> Dataset:
        """Hide a dataset with all its batches, at once; until its `purge_time` it can be brought back."""
        request = pb.DeleteDatasetRequest(dataset_id=dataset_id)
        return (await self._call(self._datasets.DeleteDataset, request)).dataset

    async def undelete_dataset(self, dataset_id: str) -> Dataset:
        """Bring a deleted dataset back with all its batches."""
        request = pb.UndeleteDatasetRequest(dataset_id=dataset_id)
        return (await self._call(self._datasets.UndeleteDataset, request)).dataset

    async def preview_dataset(self, dataset_id: str, rows: int = 0) -> list[Struct]:
        """Return some rows, those of the newest batch first; 0: as many as the server thinks fit."""
        request = pb.PreviewDatasetRequest(dataset_id=dataset_id, row_count=rows)
        return list((await self._call(self._datasets.PreviewDataset, request)).rows)


def _tag_values(tags: Tags) -> dict[str, TagValues]:
    return {key: TagValues(values=values) for key, values in tags.items()}


class SchemaCalls(Calls):
    """Calls about schemas."""

    async def create_schema(
        self, document: str, *, referenced: Sequence[str] = (), identities: Sequence[IdentityField] = ()
    ) -> schema_service_pb2.CreateSchemaResponse:
        """Register an XDM JSON Schema document; with the content of its newest version it is that version.

        Args:
            document: JSON text.
            referenced: Other documents that `$ref` names, registered in the same step: all or none.
            identities: Fields that hold identities in every dataset of the schema.
        """
        request = schema_service_pb2.CreateSchemaRequest(
            document=document, referenced_documents=referenced, identity_fields=identities
        )
        return await self._call(self._schemas.CreateSchema, request)

    async def get_schema(self, schema_id: str, version: int | None = None) -> Schema:
        """Look a schema up; None: its newest version."""
        request = schema_service_pb2.GetSchemaRequest(schema_id=schema_id, version=version)
        return (await self._call(self._schemas.GetSchema, request)).schema

    async def list_schemas(self) -> list[Schema]:
        """List the newest version of every schema of the tenant and the built-in ones, without their fields."""
        request = schema_service_pb2.ListSchemasRequest()
        return await self._list(self._schemas.ListSchemas, request, lambda page: page.schemas)

    async def get_union_schema(self, schema_name: str) -> UnionSchema:
        """Return the merge of the schemas of all source datasets of a class, such as `_xdm.context.profile`."""
        request = schema_service_pb2.GetUnionSchemaRequest(schema_name=schema_name)
        return (await self._call(self._schemas.GetUnionSchema, request)).union_schema
