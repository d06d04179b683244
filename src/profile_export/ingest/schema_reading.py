"""What is done with schema documents in a process of its own: strangers' text, of which anything can come."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from profile_export.domain.catalog import BUILT_IN_SCHEMAS, IdentityField, Schema
from profile_export.domain.errors import DomainError
from profile_export.domain.registered import check_dataset_fields
from profile_export.domain.xdm import XdmSchema
from profile_export.domain.xdm_places import SchemaInvalidError
from profile_export.ingest.documents import parse_document, read_documents

UNFORESEEN = "document"
"""Stands where the refusal of a document names the rule that it breaks, if it breaks the reader."""

# What other documents name is there from the start; what the classes hold themselves comes with the next version.
_BUILT_IN = {
    schema.id: {"$id": schema.id, "title": schema.title, "type": "object"}
    for schema in BUILT_IN_SCHEMAS.values()
    if schema.id == schema.class_id
}


@dataclass(frozen=True, slots=True)
class SchemasTask:
    """Documents to read together: those of a call, of which the last is the one that `identity_fields` are for.

    `known` are registered documents that they may refer to, by `$id`.
    """

    texts: tuple[str, ...]
    known: Mapping[str, str]
    identity_fields: tuple[IdentityField, ...]


def checked_names(texts: tuple[str, ...]) -> frozenset[str]:
    """Check documents by themselves and return the ids of those that they name.

    Raises:
        SchemaInvalidError: As `parse_document`, or for whatever else reading one raises.
    """
    with _refusing_unforeseen():
        return frozenset(name for text in texts for name in _named_ids(parse_document(text)))


def named(texts: tuple[str, ...]) -> frozenset[str]:
    """Return the ids of the documents that some registered ones name."""
    with _refusing_unforeseen():
        return frozenset(name for text in texts for name in _named_ids(json.loads(text)))


def read_schemas(task: SchemasTask) -> list[Schema]:
    """Read documents that may refer to one another, in their order.

    Raises:
        SchemaInvalidError: As `read_documents`, or for whatever else reading one raises.
        FailedPreconditionError: As `read_documents`.
        TooManyError: One has more fields than a schema knows.
    """
    with _refusing_unforeseen():
        known = {schema_id: json.loads(text) for schema_id, text in task.known.items()}
        found = read_documents(task.texts, {**_BUILT_IN, **known})
        for schema in found:
            # More would only be refused where it holds others up.
            check_dataset_fields(schema.fields, f"The schema '{schema.id}'")
        schemas = [_schema(read, text) for read, text in zip(found[:-1], task.texts[:-1], strict=True)]
        return [*schemas, _schema(found[-1], task.texts[-1], task.identity_fields)]


@contextmanager
def _refusing_unforeseen() -> Iterator[None]:
    """Tell whatever reading a document raises, a panic of an extension too, as the document's fault."""
    try:
        yield
    except (DomainError, MemoryError):
        raise
    except BaseException as error:
        raise unreadable() from error


def unreadable() -> SchemaInvalidError:
    """Return the refusal of a document that no reader gets through."""
    return SchemaInvalidError(
        "", UNFORESEEN, "it cannot be read: the reader broke down over it. Write it simpler."
    )


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
