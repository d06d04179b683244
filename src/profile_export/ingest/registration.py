"""Registration of schemas: a document and those that it names are read together and kept together."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from profile_export.domain.catalog import (
    BUILT_IN_SCHEMAS,
    DatasetKind,
    IdentityField,
    Schema,
    Tenant,
    check_identity_fields,
)
from profile_export.domain.schema import TypeConflictError
from profile_export.domain.xdm import XdmSchema
from profile_export.ingest.documents import parse_document, read_documents
from profile_export.store.schemas import Schemas

# What other documents name is there from the start; what the classes hold themselves comes with the next version.
_BUILT_IN = {
    schema.id: {"$id": schema.id, "title": schema.title, "type": "object"}
    for schema in BUILT_IN_SCHEMAS.values()
    if schema.id == schema.class_id
}


class Registration:
    """Registers schemas, for all tenants."""

    def __init__(self, schemas: Schemas) -> None:
        self._schemas = schemas

    async def register(
        self,
        tenant: Tenant,
        document: str,
        referenced_documents: Sequence[str],
        identity_fields: tuple[IdentityField, ...],
    ) -> tuple[Schema, bool]:
        """Register a document with those that it names, all or none; True says it was registered like that already.

        A schema is what its documents said together when it was registered: register it again where one that it names
        has a newer version.

        Args:
            tenant: Whose.
            document: XDM JSON Schema as text.
            referenced_documents: Others that it names, registered with it.
            identity_fields: Fields that hold identities in every dataset of the schema.

        Raises:
            InvalidArgumentError: A document is none, or the identity fields cannot work.
            FailedPreconditionError: A named document is not known, or types contradict what is known.
            AlreadyExistsError: The id is that of the built-in union schema.
        """
        check_identity_fields(DatasetKind.RECORD, identity_fields)
        texts = [*referenced_documents, document]
        parsed = [await asyncio.to_thread(parse_document, text) for text in texts]
        known = await self._named_by(tenant, parsed)
        found = await asyncio.to_thread(read_documents, texts, known)
        schemas = [_schema(read, text) for read, text in zip(found[:-1], texts[:-1], strict=True)]
        schemas.append(_schema(found[-1], document, identity_fields))
        try:
            return await self._schemas.register(tenant, schemas)
        except TypeConflictError as conflict:
            raise conflict.as_precondition() from None

    async def _named_by(
        self, tenant: Tenant, documents: Iterable[Mapping[str, Any]]
    ) -> Mapping[str, Mapping[str, Any]]:
        """Return the known documents that these name, directly or through one another."""
        known: dict[str, Mapping[str, Any]] = dict(_BUILT_IN)
        asked: set[str] = set()
        while wanted := {one for document in documents for one in _named_ids(document)} - asked:
            asked |= wanted
            texts = await self._schemas.documents(tenant, wanted)
            known |= {schema_id: json.loads(text) for schema_id, text in texts.items()}
            documents = [known[schema_id] for schema_id in texts]
        return known


def _named_ids(document: Any) -> Iterator[str]:
    """List the ids of other documents in a document, perhaps repeatedly; what a `$ref` says behind `#` is left out."""
    waiting = [document]  # a document may be nested deeper than calls may
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        if not isinstance(value, dict):
            continue
        for name, member in value.items():
            if name == "$ref" and isinstance(member, str):
                yield member.partition("#")[0]
            elif name == "meta:extends" and isinstance(member, list):
                yield from (one for one in member if isinstance(one, str))
            else:
                waiting.append(member)


def _schema(read: XdmSchema, text: str, identity_fields: tuple[IdentityField, ...] = ()) -> Schema:
    return Schema(
        id=read.id,
        kind=read.kind,
        fields=read.fields,
        class_id=read.class_id,
        title=read.title,
        document=text,
        rules=json.dumps(read.rules) if read.rules else "",
        identity_fields=identity_fields,
    )
