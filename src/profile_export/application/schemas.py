"""Registration of schemas: a document and those that it names are read together and kept together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import TypeVar

import structlog

from profile_export.domain.catalog.datasets import (
    DatasetKind,
    IdentityField,
    Schema,
    Tenant,
    check_identity_fields,
)
from profile_export.domain.errors import ExhaustedError, Reason, UnavailableError
from profile_export.domain.lists import Page, PageRequest
from profile_export.domain.schemas.types import TypeConflictError
from profile_export.domain.schemas.xdm_places import SchemaInvalidError
from profile_export.ingest.schema_documents import (
    UNFORESEEN,
    SchemasTask,
    checked_names,
    named,
    read_schemas,
    unreadable,
)
from profile_export.ingest.task import Expense
from profile_export.processes.messages import ChildDiedError, TooExpensiveError
from profile_export.processes.supervisor import Pool
from profile_export.store.catalog.schemas import Schemas

_RETRY_AFTER = timedelta(seconds=1)
_Task = TypeVar("_Task")
_Result = TypeVar("_Result")
_log = structlog.get_logger(__name__)


class SchemaUseCases:
    """Registers schemas, for all tenants; `children` read documents, within `expense`."""

    def __init__(self, schemas: Schemas, children: Pool, expense: Expense) -> None:
        self._schemas, self._children, self._expense = schemas, children, expense

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

        Documents are XDM JSON Schema as text. `identity_fields` hold identities in every dataset of the schema.

        Raises:
            InvalidArgumentError: A document is none, or the identity fields cannot work.
            FailedPreconditionError: A named document is not known, or types contradict what is known.
            AlreadyExistsError: The id is that of the built-in union schema.
            ExhaustedError: The documents take too much to read.
            UnavailableError: The process that read them has died.
        """
        check_identity_fields(DatasetKind.RECORD, identity_fields)
        texts = (*referenced_documents, document)
        size = sum(map(len, texts))
        known = await self._named_by(tenant, await self._read(tenant, checked_names, texts, size))
        task = SchemasTask(texts, known, identity_fields)
        schemas = await self._read(tenant, read_schemas, task, size + sum(map(len, known.values())))
        try:
            return await self._schemas.register(tenant, schemas)
        except TypeConflictError as conflict:
            raise conflict.as_precondition(
                "Give it the same type in the document, or keep the dataset out of exports with the tag "
                "unifiedProfile: enabled:false."
            ) from None

    async def get(self, tenant: Tenant, schema_id: str, version: int | None) -> Schema:
        """Return a version of a schema; None: the newest."""
        return await self._schemas.get(tenant, schema_id, version)

    async def list(self, tenant: Tenant, request: PageRequest) -> Page[Schema]:
        """Return a page of the tenant's schemas, and of those that are built in."""
        return await self._schemas.list(tenant, request)

    async def _named_by(self, tenant: Tenant, names: frozenset[str]) -> Mapping[str, str]:
        """Return the known documents of these ids, and those that they name, directly or through one another."""
        known: dict[str, str] = {}
        asked: set[str] = set()
        while wanted := names - asked:
            asked |= wanted
            found = await self._schemas.documents(tenant, wanted)
            known |= found
            texts = tuple(found.values())
            names = await self._read(tenant, named, texts, sum(map(len, texts))) if texts else frozenset()
        return known

    async def _read(
        self, tenant: Tenant, work: Callable[[_Task], _Result], task: _Task, byte_count: int
    ) -> _Result:
        try:
            return await self._children.run(work, task, tenant, self._expense.limits(byte_count))
        except SchemaInvalidError as refused:
            if refused.rule == UNFORESEEN:
                _log.warning("schema_unreadable", exc_info=refused)
            raise
        except TooExpensiveError as over:
            message = f"Reading the schema document took more than {over}: write it simpler, or register it in parts."
            raise ExhaustedError(Reason.INGEST_TOO_EXPENSIVE.value, message) from None
        except ChildDiedError as died:
            if died.is_crash:
                _log.warning("schema_unreadable", exit_code=died.exit_code)
                raise unreadable() from None
            message = "The process that read the schema document died; send the same call again."
            raise UnavailableError("INGEST_DIED", message, retry_after=_RETRY_AFTER) from None
