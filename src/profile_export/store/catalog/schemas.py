"""Registered schemas beside those that are built in, and the union schemas of what all sources of a tenant know.

A dataset, a change of one or a schema is judged beside the sources before the writing transaction, for which everybody
waits. That transaction only looks whether the revision of what the sources know is still the same; where it is not,
the judgement is made again there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Select, bindparam, func, insert, literal, select, update

from profile_export.domain.catalog.allowances import check_class_fields, check_dataset_fields
from profile_export.domain.catalog.datasets import (
    BUILT_IN_SCHEMAS,
    Dataset,
    Schema,
    Tenant,
    check_beside,
    next_version,
)
from profile_export.domain.errors import NotFoundError
from profile_export.domain.lists import Order, Page, PageRequest, Read, joined_page
from profile_export.domain.schemas.types import EMPTY, ObjectType, TypeConflictError, is_wide, union_objects
from profile_export.processes.turns import compute_if
from profile_export.store.catalog.tenants import dataset_from, ensure_tenant, id_of, source_datasets, union_of
from profile_export.store.db.columns import columns_of, value_of, write_ahead
from profile_export.store.db.database import Store, database_time, uninterruptible
from profile_export.store.db.lists import page_of
from profile_export.store.db.tables import datasets, schemas, tenants
from profile_export.store.db.transactions import Transaction, Unions, characters, page_rows

_OLDEST_FIRST = Order("create_time")
_COLUMNS = {**schemas.c, "built_in": literal(value=False)}
_LISTED = [column for column in schemas.c if column.name not in {"document", "rules", "fields"}]
_CHARACTERS = characters(schemas.c.title, schemas.c.class_id, schemas.c.identity_fields)


class Schemas(Store):
    """Schemas of all tenants."""

    @uninterruptible
    async def documents(self, tenant: Tenant, ids: Collection[str]) -> Mapping[str, str]:
        """Return the newest documents of these ids, as far as there are any."""
        async with self.database.read() as connection:
            rows = await connection.execute(_newest(id_of(tenant)).where(schemas.c.id.in_(ids)))
            return {row.id: row.document for row in rows}

    @uninterruptible
    async def register(self, tenant: Tenant, read: Sequence[Schema]) -> tuple[Schema, bool]:
        """Register documents in one step; return the last one, and True if it was registered like that already.

        Every dataset that follows one of them comes to know its fields.

        Raises:
            TypeConflictError: One narrows or changes a field of its version before, or contradicts a dataset.
            AlreadyExistsError: One has the id of a schema that cannot be extended.
            TooManyError: One, a dataset that follows it, or their class would know more fields than may be.
        """
        async with self.database.read() as connection:
            judged = await _judge(connection, id_of(tenant), read)
            if not judged.added:
                return judged.stored, True
        async with self.database.write() as connection:
            tenant_id = await ensure_tenant(connection, tenant)
            followers = await connection.values(_following(tenant_id, judged.added, datasets.c.id))
            same = set(followers) == set(judged.growth.fields)
            if not same or not await still_holds(connection, tenant_id, judged.growth.outlook):
                judged = await _judge(connection, tenant_id, read)
            if not judged.added:
                return judged.stored, True
            now = await database_time(connection)
            rows = [row | {"tenant_id": tenant_id, "create_time": now} for row in judged.rows]
            await connection.execute(insert(schemas), rows)
            await grow(connection, tenant_id, judged.growth)
            if not judged.growth.changed:
                # Whoever is about to make a dataset that follows an older version looks again.
                await sources_changed(connection, tenant_id, judged.growth.outlook)
        if judged.replayed:
            return judged.stored, True
        return replace(judged.stored, create_time=now), False

    @uninterruptible
    async def get(self, tenant: Tenant, schema_id: str, version: int | None = None) -> Schema:
        """Return a schema in a version, or the newest.

        Raises:
            NotFoundError: The tenant has none of that id, or not that version.
        """
        async with self.database.read() as connection:
            if version is None:
                return await newest_schema(connection, id_of(tenant), schema_id)
            built_in = BUILT_IN_SCHEMAS.get(schema_id)
            if built_in and built_in.version == version:
                return built_in
            query = select(schemas).where(
                schemas.c.tenant_id == id_of(tenant), schemas.c.id == schema_id, schemas.c.version == version
            )
            return value_of(Schema, await connection.existing(query, "schema", f"{schema_id}@{version}"))

    @uninterruptible
    async def list(self, tenant: Tenant, request: PageRequest) -> Page[Schema]:
        """Return a page of schemas in their newest versions.

        Unless asked otherwise, those that are only built in come first, then the oldest. Those that are registered come
        without document, rules and fields.
        """
        tenant_id = id_of(tenant)
        query = page_of(_newest(tenant_id), request, _COLUMNS, _OLDEST_FIRST, schemas.c.id)
        async with self.database.read() as connection:
            ids = _newest(tenant_id).with_only_columns(schemas.c.id)
            registered = set(await connection.scalars(ids))
            rows, more = await page_rows(
                connection, query.with_only_columns(*_LISTED), request.size, _CHARACTERS
            )
        built_in = [schema for schema in BUILT_IN_SCHEMAS.values() if schema.id not in registered]
        stored = Read([value_of(Schema, row, fields=EMPTY) for row in rows], more)
        return joined_page(built_in, stored, request, _OLDEST_FIRST, _told)


def _told(schema: Schema) -> Mapping[str, Any]:
    """Return what a schema that is only built in can be filtered by."""
    return {"kind": schema.kind, "class_id": schema.class_id, "built_in": True, "create_time": None}


async def newest_schema(connection: Transaction, tenant_id: Any, schema_id: str) -> Schema:
    """Return the newest version of a schema, within a transaction.

    Raises:
        NotFoundError: The tenant has none of that id.
    """
    found = (await _newest_of(connection, tenant_id, {schema_id})).get(schema_id)
    if found is None:
        raise NotFoundError.of("schema", schema_id)
    return found


async def _newest_of(
    connection: Transaction, tenant_id: Any, schema_ids: Collection[str]
) -> dict[str, Schema]:
    """Return the newest versions of these schemas by their ids, as far as there are any."""
    found = {
        schema_id: BUILT_IN_SCHEMAS[schema_id] for schema_id in schema_ids if schema_id in BUILT_IN_SCHEMAS
    }
    rows = await connection.all(_newest(tenant_id).where(schemas.c.id.in_(list(schema_ids))))
    return found | {row.id: value_of(Schema, row) for row in rows}


def _newest(tenant_id: Any) -> Any:
    """Select the newest version of every registered schema."""
    newest = (
        select(schemas.c.id, func.max(schemas.c.version).label("version"))
        .where(schemas.c.tenant_id == tenant_id)
        .group_by(schemas.c.id)
        .subquery()
    )
    joined = select(schemas).join(
        newest, (schemas.c.id == newest.c.id) & (schemas.c.version == newest.c.version)
    )
    return joined.where(schemas.c.tenant_id == tenant_id)


@dataclass(frozen=True, slots=True)
class _Judged:
    """Documents that may be registered: `added` are the new versions, with their `rows` but for tenant and time.

    `stored` is what the last document has become, `replayed` says whether it was that already.
    """

    stored: Schema
    replayed: bool
    added: Sequence[Schema]
    rows: Sequence[dict[str, Any]]
    growth: Growth


async def _judge(connection: Transaction, tenant_id: Any, read: Sequence[Schema]) -> _Judged:
    newest = await _newest_of(connection, tenant_id, {schema.id for schema in read})
    stored, replayed = read[-1], True
    added: list[Schema] = []
    for schema in read:
        known = newest.get(schema.id)
        wide = is_wide([schema.fields])
        newer = await compute_if(wide, next_version, known, schema)
        replayed = newer is None
        if newer is None:
            stored = known or schema
            continue
        stored = newest[schema.id] = newer
        await compute_if(wide, check_dataset_fields, newer.fields, f"The schema '{newer.id}'")
        added.append(newer)
    usable = {schema.id: schema for schema in added if schema.kind is not None}
    following = map(dataset_from, await connection.all(_following(tenant_id, added)))
    growing = [(dataset, usable[dataset.schema.id].fields) for dataset in following]
    growth = await foresee_growth(connection, tenant_id, growing)
    for schema in usable.values():
        await _check_beside(connection, tenant_id, growth, schema)
    return _Judged(stored, replayed, added, [await _row(schema) for schema in added], growth)


def _following(tenant_id: Any, added: Sequence[Schema], *columns: Any) -> Select[Any]:
    """Select the datasets that follow schemas, or columns of them."""
    usable = {schema.id for schema in added if schema.kind is not None}
    return select(*(columns or (datasets,))).where(
        datasets.c.tenant_id == tenant_id,
        datasets.c.schema_id.in_(list(usable)),
        datasets.c.delete_time.is_(None),
    )


async def _check_beside(connection: Transaction, tenant_id: Any, growth: Growth, schema: Schema) -> None:
    """Refuse a schema whose datasets could not stand beside the sources, also where it has none yet."""
    try:
        unions = growth.outlook.unions or await known_unions(connection, tenant_id)
        known = unions.get(schema.kind, EMPTY) if schema.kind else EMPTY
        await compute_if(is_wide([known, schema.fields]), union_objects, known, schema.fields)
    except TypeConflictError:
        sources = [
            replace(dataset, fields=growth.fields.get(dataset.id, dataset.fields))
            for dataset in await source_datasets(connection, tenant_id)
        ]
        await compute_if(is_wide(source.fields for source in sources), check_beside, sources, schema)


async def _row(schema: Schema) -> dict[str, Any]:
    return columns_of(schema, schemas) | {
        "fields": await write_ahead(schemas.c.fields, schema.fields),
        "identity_fields": await write_ahead(schemas.c.identity_fields, schema.identity_fields),
    }


@dataclass(frozen=True, slots=True)
class Outlook:
    """What the sources of a tenant will know together with newcomers; None if nobody had to find out.

    `revision` is that of what they knew, `grows` says whether the newcomers add anything.
    """

    revision: int
    unions: Unions | None
    grows: bool = False


async def look_ahead(connection: Transaction, tenant_id: Any, newcomers: Sequence[Dataset]) -> Outlook:
    """Judge datasets, as they will be, beside the other sources of their tenant.

    Raises:
        TypeConflictError: They contradict these; a newcomer is told as the one that brings the conflict.
        TooManyError: They would know more fields together than a class may.
    """
    key, revision = await _revision(connection, tenant_id)
    unions = connection.unions.at(key, revision)
    coming = [dataset for dataset in newcomers if dataset.is_source]
    if not coming:
        return Outlook(revision, unions)
    try:
        unions = unions or await known_unions(connection, tenant_id)
        wide = is_wide([*unions.values(), *(dataset.fields for dataset in coming)])
        joined = await compute_if(wide, _joined, unions, coming)
    except TypeConflictError:
        # Who contradicts whom is told by those who know; and in what order types widen can matter.
        there = {dataset.id: dataset for dataset in await source_datasets(connection, tenant_id)}
        for dataset in coming:
            there.pop(dataset.id, None)
        unions, joined = {}, await union_of([*there.values(), *coming])
    grown = [union for kind, union in joined.items() if union is not unions.get(kind)]
    for union in grown:
        await compute_if(is_wide([union]), check_class_fields, union)
    return Outlook(revision, joined, grows=bool(grown))


async def known_unions(connection: Transaction, tenant_id: Any) -> Unions:
    """Return what the sources of a tenant know together; raises as `union_of`."""
    key, revision = await _revision(connection, tenant_id)
    unions = connection.unions.at(key, revision)
    if unions is None:
        unions = await union_of(await source_datasets(connection, tenant_id))
        connection.unions.keep(key, revision, unions)
    return unions


async def _revision(connection: Transaction, tenant_id: Any) -> tuple[int, int]:
    """Return the tenant's key and the revision of what its sources know; zeros before there is such a tenant."""
    query = select(tenants.c.id, tenants.c.schema_revision).where(tenants.c.id == tenant_id)
    row = await connection.first(query)
    return (row.id, row.schema_revision) if row else (0, 0)


def _joined(unions: Unions, coming: Sequence[Dataset]) -> Unions:
    joined = dict(unions)
    for dataset in coming:
        joined[dataset.kind] = union_objects(joined[dataset.kind], dataset.fields)
    return joined


@dataclass(frozen=True, slots=True)
class Growth:
    """What datasets will know, by their ids, and of those that will know more what statements take for it."""

    outlook: Outlook
    fields: Mapping[str, ObjectType]
    changed: Mapping[str, Any]


async def foresee_growth(
    connection: Transaction,
    tenant_id: Any,
    growing: Iterable[tuple[Dataset, ObjectType]],
) -> Growth:
    """Judge what datasets come to know.

    Raises:
        TypeConflictError: It contradicts what a dataset or the union of its class knows.
        TooManyError: A dataset, or its class, would know more fields than may be.
    """
    grown = []
    fields = {}
    for dataset, found in growing:
        wide = is_wide([dataset.fields, found])
        known = fields[dataset.id] = await compute_if(wide, union_objects, dataset.fields, found)
        if known is not dataset.fields:
            await compute_if(wide, check_dataset_fields, known)
            grown.append(replace(dataset, fields=known))
    outlook = await look_ahead(connection, tenant_id, grown)
    changed = {dataset.id: await write_ahead(datasets.c.fields, dataset.fields) for dataset in grown}
    return Growth(outlook, fields, changed)


async def grow(connection: Transaction, tenant_id: int, growth: Growth) -> None:
    """Make known what was foreseen and still holds; the `update_time` of the datasets stays as it was."""
    if growth.changed:
        rows = [{"of_dataset": dataset_id, "grown": fields} for dataset_id, fields in growth.changed.items()]
        query = update(datasets).where(datasets.c.id == bindparam("of_dataset"))
        await connection.execute(query.values(fields=bindparam("grown")), rows)
        await sources_changed(connection, tenant_id, growth.outlook)


async def still_holds(connection: Transaction, tenant_id: int, outlook: Outlook) -> bool:
    """Say whether sources and schemas are those that were looked at, within the writing transaction."""
    query = select(tenants.c.schema_revision).where(tenants.c.id == tenant_id)
    revision: int = await connection.value(query)
    return revision == outlook.revision


async def sources_changed(connection: Transaction, tenant_id: Any, outlook: Outlook | None = None) -> None:
    """Note that what was judged before does not hold any more, in the transaction that changes it.

    If the sources know then what an outlook has foreseen, that is kept after the commit.
    """
    query = update(tenants).where(tenants.c.id == tenant_id)
    await connection.execute(query.values(schema_revision=tenants.c.schema_revision + 1))
    if outlook and outlook.unions is not None:
        connection.new_unions = (tenant_id, outlook.revision + 1, outlook.unions)
