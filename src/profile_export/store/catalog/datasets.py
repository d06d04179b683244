"""Datasets: judged before the writing transaction, then written; and the union schemas of those that exports read."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from sqlalchemy import Executable, Select, case, exists, insert, select, update

from profile_export.domain.catalog.allowances import DEFAULT_QUOTAS, Quotas, check_dataset_fields
from profile_export.domain.catalog.batches import NamespaceUse
from profile_export.domain.catalog.datasets import (
    Dataset,
    DatasetChange,
    DatasetKind,
    FieldDeclaration,
    IdentityField,
    NewDataset,
    Tenant,
    check_declared_fields,
    check_identity_fields,
    check_tags,
    check_undeletable,
    initial_fields,
    missing_dataset,
    usable_kind,
    with_declared,
)
from profile_export.domain.errors import FailedPreconditionError, FieldViolation, check_etag
from profile_export.domain.lists import Order, Page, PageRequest, cursor_at, cut_page
from profile_export.domain.schemas.types import WIDE, ObjectType, TypeConflictError, is_wide, union_objects
from profile_export.processes.turns import compute_if
from profile_export.store.catalog.schemas import (
    Outlook,
    look_ahead,
    newest_schema,
    sources_changed,
    still_holds,
)
from profile_export.store.catalog.tenants import (
    DATASETS,
    IDENTITY,
    THERE_OR_UNDELETABLE,
    check_one_more,
    dataset_from,
    dataset_of,
    ensure_tenant,
    id_of,
    kept_dataset,
    made_before,
    register_namespaces,
    source_datasets,
    union_of,
)
from profile_export.store.db.columns import columns_of, digest_of, write_ahead
from profile_export.store.db.database import Database, Store, database_time, uninterruptible
from profile_export.store.db.lists import page_of
from profile_export.store.db.tables import UNFINISHED, datasets, jobs
from profile_export.store.db.transactions import Transaction, characters, page_rows
from profile_export.store.files.mirrors import ask_drop, ask_table

DEFAULT_GRACE = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Judged:
    """A new dataset or a change that may be: `values` are the new ones of its row, none if nothing changes.

    `is_felt` says whether the sources come to know more, or are others.
    """

    outlook: Outlook
    values: dict[str, Any]
    is_felt: bool = False


async def _judge_new(connection: Transaction, tenant_id: Any, new: NewDataset, dataset_id: str) -> Judged:
    """Judge a new dataset; what it may not be is raised as `Catalog.create_dataset` says."""
    schema = await newest_schema(connection, tenant_id, new.schema.id)
    kind = usable_kind(schema)
    identities = _with_those_of_the_schema(new.identity_fields, schema.identity_fields)
    check_identity_fields(kind, identities)
    wide = len(new.declared_fields) > WIDE or is_wide([schema.fields])
    await compute_if(wide, check_declared_fields, kind, new.declared_fields, "declared_fields")
    check_tags(kind, new.tags)
    fields = await compute_if(wide, initial_fields, schema, identities, new.declared_fields)
    await compute_if(wide, check_dataset_fields, fields)
    now = await database_time(connection)
    dataset = Dataset(
        id=dataset_id,
        name=new.name,
        description=new.description,
        schema=new.schema,
        kind=kind,
        tags=new.tags,
        identity_fields=identities,
        declared_fields=new.declared_fields,
        fields=fields,
        create_time=now,
        update_time=now,
        iceberg=kind is DatasetKind.UNION if new.iceberg is None else new.iceberg,
        batch_retention=new.batch_retention,
    )
    outlook = await look_ahead(connection, tenant_id, [dataset])
    values = columns_of(dataset, datasets) | {
        "schema_id": new.schema.id,
        "content_type": new.schema.content_type,
        "identity_fields": await write_ahead(datasets.c.identity_fields, identities),
        "declared_fields": await write_ahead(datasets.c.declared_fields, new.declared_fields),
        "fields": await write_ahead(datasets.c.fields, fields),
    }
    return Judged(outlook, values, is_felt=outlook.grows)


_GIVEN = ("name", "description", "tags", "iceberg", "batch_retention")
"""What a change may give anew; the declared fields of a dataset only grow."""


async def _judge_change(
    connection: Transaction, tenant_id: Any, dataset: Dataset, change: DatasetChange
) -> Judged:
    """Judge the change of a dataset; raises also `TypeConflictError` for a declared type that the union contradicts."""
    added = change.declared_fields
    wide = len(added) > WIDE or is_wide([dataset.fields])
    await compute_if(wide, check_declared_fields, dataset.kind, added, "add_declared_fields")
    given = {name: value for name in _GIVEN if (value := getattr(change, name)) is not None}
    check_tags(dataset.kind, given.get("tags", dataset.tags))
    retention = given.get("batch_retention", dataset.batch_retention)
    changed = replace(
        dataset,
        **given | {"batch_retention": retention or None},
        declared_fields=await compute_if(wide, _with_newer, dataset.declared_fields, added),
        fields=await compute_if(wide, with_declared, dataset.fields, added),
    )
    knows_more = changed.fields is not dataset.fields
    turns = changed.is_source != dataset.is_source
    if knows_more:
        await compute_if(wide, check_dataset_fields, changed.fields)
    newcomers = [changed] if knows_more or turns else []
    outlook = await look_ahead(connection, tenant_id, newcomers)
    if changed == dataset:
        return Judged(outlook, {})
    values = {name: getattr(changed, name) for name in _GIVEN} | {
        "declared_fields": await write_ahead(datasets.c.declared_fields, changed.declared_fields),
        "fields": await write_ahead(datasets.c.fields, changed.fields),
    }
    if dataset.is_source and turns:
        outlook = replace(outlook, unions=None)  # nobody looked at what the others know without it
    return Judged(outlook, values, is_felt=knows_more or turns)


async def _judge_return(connection: Transaction, tenant_id: Any, dataset: Dataset) -> Judged:
    """Judge a deleted dataset beside the sources of now, with what its schema has come to know meanwhile.

    Raises:
        TypeConflictError: It contradicts these.
        TooManyError: More fields would be known than may be.
    """
    schema = await newest_schema(connection, tenant_id, dataset.schema.id)
    wide = is_wide([dataset.fields, schema.fields])
    fields = await compute_if(wide, union_objects, dataset.fields, schema.fields)
    await compute_if(wide, check_dataset_fields, fields)
    outlook = await look_ahead(connection, tenant_id, [replace(dataset, fields=fields)])
    return Judged(
        outlook, {"fields": await write_ahead(datasets.c.fields, fields)}, is_felt=dataset.is_source
    )


def _with_those_of_the_schema(
    own: Sequence[IdentityField], schemas: Sequence[IdentityField]
) -> tuple[IdentityField, ...]:
    """Return the identity fields of a dataset: what it says of a path goes before what its schema says."""
    said = {field.path for field in own}
    has_primary = any(field.primary for field in own)
    inherited = (field for field in schemas if field.path not in said)
    return (
        *own,
        *(IdentityField(one.path, one.namespace, one.primary and not has_primary) for one in inherited),
    )


def _with_newer(
    known: Sequence[FieldDeclaration], added: Sequence[FieldDeclaration]
) -> tuple[FieldDeclaration, ...]:
    types = {declared.path: declared.type for declared in (*known, *added)}
    return tuple(FieldDeclaration(path, kind) for path, kind in types.items())


_CHARACTERS = characters(
    datasets.c.description,
    datasets.c.tags,
    datasets.c.identity_fields,
    datasets.c.declared_fields,
    datasets.c.fields,
)


_OLDEST_FIRST = Order("create_time")


class Catalog(Store):
    """Datasets of all tenants."""

    def __init__(
        self, database: Database, quotas: Quotas = DEFAULT_QUOTAS, grace: timedelta = DEFAULT_GRACE
    ) -> None:
        """Make one that brings deleted datasets back within `grace`."""
        super().__init__(database)
        self._most_datasets = quotas.datasets
        self._grace = grace

    @uninterruptible
    async def create_dataset(
        self, tenant: Tenant, new: NewDataset, dataset_id: str, request_id: str
    ) -> tuple[Dataset, bool]:
        """Make a dataset, or find the one made before with the same request id; True says it was found.

        Raises:
            AlreadyExistsError: The request id stands for a dataset made from other values.
            NotFoundError: There is no such schema.
            InvalidArgumentError: Its identity fields, declared fields or tags cannot work.
            TypeConflictError: A type contradicts the schema, or the union of the class.
            ExhaustedError: The tenant has as many datasets as it may have.
            TooManyError: More fields or namespaces would be known than may be.
        """
        digest = await compute_if(len(new.declared_fields) > WIDE, digest_of, new)
        async with self.database.read() as connection:
            found = await made_before(connection, select(datasets), id_of(tenant), request_id, digest)
            if found:
                return dataset_from(found), True
            made = await _judge_new(connection, id_of(tenant), new, dataset_id)
        async with self.database.write() as connection:
            tenant_id = await ensure_tenant(connection, tenant)
            found = await made_before(connection, select(datasets), tenant_id, request_id, digest)
            if found:
                return dataset_from(found), True
            await check_one_more(connection, DATASETS, tenant_id, self._most_datasets)
            if not await still_holds(connection, tenant_id, made.outlook):
                made = await _judge_new(connection, tenant_id, new, dataset_id)
            now = await database_time(connection)
            row = made.values | {
                "tenant_id": tenant_id,
                "create_time": now,
                "update_time": now,
                "request_id": request_id or None,
                "request_digest": digest,
            }
            dataset = dataset_from(await connection.one(insert(datasets).values(row).returning(datasets)))
            if made.is_felt:
                await sources_changed(connection, tenant_id, made.outlook)
            declared = tuple(field.namespace for field in dataset.identity_fields)
            use = NamespaceUse(declared, frozenset(declared))
            await register_namespaces(connection, tenant_id, IDENTITY, use)
            return dataset, False

    @uninterruptible
    async def get_dataset(self, tenant: Tenant, dataset_id: str) -> Dataset:
        """Return a dataset.

        Raises:
            NotFoundError: The tenant has none of that id.
        """
        async with self.database.read() as connection:
            return await dataset_of(connection, id_of(tenant), dataset_id)

    @uninterruptible
    async def look_dataset_up(self, tenant: Tenant, dataset_id: str) -> Dataset:
        """Return a dataset, also a deleted one that can be brought back.

        Raises:
            NotFoundError: The tenant has none of that id.
        """
        async with self.database.read() as connection:
            dataset = await kept_dataset(connection, id_of(tenant), dataset_id)
        if dataset.delete_time is not None and dataset.purge_time is None:
            raise missing_dataset(dataset_id, None, None)
        return dataset

    @uninterruptible
    async def list_datasets(
        self, tenant: Tenant, request: PageRequest, *, show_deleted: bool = False
    ) -> Page[Dataset]:
        """Return a page of datasets, oldest first unless asked otherwise.

        With `show_deleted`, also of those that can be brought back.
        """
        shown = THERE_OR_UNDELETABLE if show_deleted else datasets.c.delete_time.is_(None)
        query = select(datasets).where(datasets.c.tenant_id == id_of(tenant), shown)
        query = page_of(query, request, datasets.c, _OLDEST_FIRST, datasets.c.id)
        async with self.database.read() as connection:
            rows, more = await page_rows(connection, query, request.size, _CHARACTERS)
        order = request.order or _OLDEST_FIRST
        listed = [dataset_from(row) for row in rows]
        return cut_page(listed, request, lambda last: cursor_at(order.place(last)), has_more=more)

    @uninterruptible
    async def update_dataset(
        self, tenant: Tenant, dataset_id: str, change: DatasetChange, etag: str = ""
    ) -> Dataset:
        """Change what is given; a change that changes nothing leaves `update_time` as it was.

        Raises:
            NotFoundError: There is no such dataset.
            AbortedError: It is not as it was when it had that `etag`; an empty one is always right.
            InvalidArgumentError: The declared fields or tags cannot work.
            FailedPreconditionError: A declared type narrows what is known, tags bring a conflict into the union, or
                more fields would be known than may be.
        """
        try:
            return await self._updated(tenant, dataset_id, change, etag)
        except TypeConflictError as conflict:
            raise conflict.as_precondition(
                "Declare the same type, or keep one of the two out of exports with the tag unifiedProfile: "
                "enabled:false."
            ) from None

    async def _updated(self, tenant: Tenant, dataset_id: str, change: DatasetChange, etag: str) -> Dataset:
        async with self.database.read() as connection:
            before = await dataset_of(connection, id_of(tenant), dataset_id)
            check_etag(etag, before.etag, dataset_id)
            planned = await _judge_change(connection, id_of(tenant), before, change)
        async with self.database.write() as connection:
            tenant_id = await ensure_tenant(connection, tenant)
            dataset = await dataset_of(connection, tenant_id, dataset_id)
            check_etag(etag, dataset.etag, dataset_id)
            if dataset != before or not await still_holds(connection, tenant_id, planned.outlook):
                planned = await _judge_change(connection, tenant_id, dataset, change)
            if not planned.values:
                return dataset
            # Two changes at one moment, or of a clock that was set back, are two changes.
            now = max(await database_time(connection), dataset.update_time + timedelta(microseconds=1))
            values = planned.values | {"update_time": now}
            updated = await connection.one(_changed(dataset_id, values))
            if planned.is_felt:
                await sources_changed(connection, tenant_id, planned.outlook)
        return dataset_from(updated)

    @uninterruptible
    async def delete_dataset(self, tenant: Tenant, dataset_id: str, etag: str = "") -> Dataset:
        """Hide a dataset with all its batches, until it is brought back or purged.

        Raises:
            NotFoundError: There is no such dataset.
            AbortedError: As `update_dataset`.
            FailedPreconditionError: Unfinished jobs use it; they are named.
        """
        async with self.database.read() as connection:
            await dataset_of(connection, id_of(tenant), dataset_id)
            looked_at = await _plans_with(connection, id_of(tenant), dataset_id)
        async with self.database.write() as connection:
            dataset = await dataset_of(connection, id_of(tenant), dataset_id)
            check_etag(etag, dataset.etag, dataset_id)
            using = await _unfinished_jobs(connection, id_of(tenant), dataset, looked_at)
            if using:
                named = ", ".join(str(job_id) for job_id in using)
                raise FailedPreconditionError(
                    "DATASET_IN_USE",
                    f"The dataset '{dataset_id}' is used by unfinished jobs: {named}. Wait for them or cancel them.",
                    metadata={"id": dataset_id, "jobs": named},
                    violations=tuple(FieldViolation(f"jobs/{one}", "is not finished") for one in using),
                )
            # Its request id is free again: it stands for a dataset that nobody can use.
            now = await database_time(connection)
            values = {
                "delete_time": now,
                "purge_time": now + self._grace,
                "former_request_id": datasets.c.request_id,
                "request_id": None,
            }
            deleted = await connection.one(_changed(dataset_id, values))
            if dataset.is_source:
                await sources_changed(connection, id_of(tenant))
            await ask_drop(connection, dataset_id)
        return dataset_from(deleted)

    @uninterruptible
    async def undelete_dataset(self, tenant: Tenant, dataset_id: str) -> Dataset:
        """Bring a deleted dataset back with all its batches.

        Raises:
            NotFoundError: There is no such dataset, or it is gone for good.
            AlreadyExistsError: It is not deleted.
            FailedPreconditionError: What it knows contradicts what the other sources have come to know, or more fields
                would be known than may be.
            ExhaustedError: The tenant has as many datasets as it may have.
        """
        try:
            return await self._undeleted(tenant, dataset_id)
        except TypeConflictError as conflict:
            raise conflict.as_precondition(
                "Delete that one, or give it the tag unifiedProfile: enabled:false with UpdateDataset; then try again."
            ) from None

    async def _undeleted(self, tenant: Tenant, dataset_id: str) -> Dataset:
        async with self.database.read() as connection:
            before = await kept_dataset(connection, id_of(tenant), dataset_id)
            check_undeletable(before, await database_time(connection))
            planned = await _judge_return(connection, id_of(tenant), before)
        async with self.database.write() as connection:
            tenant_id = await ensure_tenant(connection, tenant)
            dataset = await kept_dataset(connection, tenant_id, dataset_id)
            check_undeletable(dataset, await database_time(connection))
            await check_one_more(connection, DATASETS, tenant_id, self._most_datasets)
            if dataset != before or not await still_holds(connection, tenant_id, planned.outlook):
                planned = await _judge_return(connection, tenant_id, dataset)
            taken = datasets.alias()
            its_own_again = case(
                (
                    ~exists().where(
                        taken.c.tenant_id == tenant_id, taken.c.request_id == datasets.c.former_request_id
                    ),
                    datasets.c.former_request_id,
                )
            )
            values = planned.values | {
                "delete_time": None,
                "purge_time": None,
                "request_id": its_own_again,
                "former_request_id": None,
            }
            row = await connection.one(_changed(dataset_id, values))
            if planned.is_felt:
                await sources_changed(connection, tenant_id, planned.outlook)
            await ask_table(connection, dataset_id)
            connection.batches_changed()
        return dataset_from(row)

    @uninterruptible
    async def union_fields(self, tenant: Tenant) -> Mapping[DatasetKind, ObjectType]:
        """Return the union schemas of the tenant's record and event sources, built-in fields included."""
        return await union_of(await self.sources(tenant))

    @uninterruptible
    async def sources(self, tenant: Tenant) -> Sequence[Dataset]:
        """Return the datasets that exports read (S11), oldest first."""
        async with self.database.read() as connection:
            return await source_datasets(connection, id_of(tenant))


def _changed(dataset_id: str, values: Mapping[str, Any]) -> Executable:
    return update(datasets).where(datasets.c.id == dataset_id).values(values).returning(datasets)


async def _plans_with(
    connection: Transaction, tenant_id: Any, dataset_id: str, but_for: Collection[int] = ()
) -> Mapping[int, bool]:
    """Say of the unfinished jobs that are planned, by their ids, whether they have pinned a dataset."""
    planned = _unfinished(tenant_id, jobs.c.id, jobs.c.plan).where(jobs.c.plan.is_not(None))
    if but_for:
        planned = planned.where(jobs.c.id.not_in(but_for))
    return {
        job.id: any(source.dataset_id == dataset_id for source in job.plan.sources)
        for job in await connection.all(planned)
    }


async def _unfinished_jobs(
    connection: Transaction, tenant_id: Any, dataset: Dataset, looked_at: Mapping[int, bool]
) -> list[int]:
    """Return the jobs that write to a dataset, have pinned it, or will read it when they are planned.

    Plans never change: of those `looked_at` before, none is read once more.
    """
    columns = (jobs.c.id, jobs.c.destination_id, jobs.c.plan.is_not(None).label("planned"))
    found = await connection.all(_unfinished(tenant_id, *columns).order_by(jobs.c.id))
    pinning = dict(looked_at)
    if any(job.planned and job.id not in pinning for job in found):
        pinning |= await _plans_with(connection, tenant_id, dataset.id, but_for=pinning)
    return [
        job.id
        for job in found
        if job.destination_id == dataset.id or (pinning[job.id] if job.planned else dataset.is_source)
    ]


def _unfinished(tenant_id: Any, *columns: Any) -> Select[Any]:
    return select(*columns).where(jobs.c.tenant_id == tenant_id, UNFINISHED)
