"""Batches and their files: a batch counts from the commit of one transaction on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Row, Select, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from profile_export.domain.catalog import Batch, BatchState, DataFile, Tenant
from profile_export.domain.errors import FailedPreconditionError, NotFoundError
from profile_export.domain.paging import Page, PageRequest, cut_page
from profile_export.store.catalog import dataset_of
from profile_export.store.database import Database, database_time, whole
from profile_export.store.mirrors import named_by_mirror
from profile_export.store.tables import batches, files
from profile_export.store.tenants import (
    BatchPlace,
    id_of,
)


class Batches:
    """Batches and data files of all tenants."""

    def __init__(self, database: Database) -> None:
        self.database = database

    @whole
    async def get_batch(self, tenant: Tenant, batch_id: str) -> Batch:
        """Return a batch in any state.

        Raises:
            NotFoundError: The tenant has none of that id.
        """
        async with self.database.read() as connection:
            return batch_from(await _existing(connection, id_of(tenant), batch_id))

    @whole
    async def folder_of(self, tenant: Tenant, batch_id: str) -> str:
        """Return a batch's place in the lake.

        Raises:
            NotFoundError: The tenant has no such batch.
        """
        async with self.database.read() as connection:
            folder: str = (await _existing(connection, id_of(tenant), batch_id)).folder
            return folder

    @whole
    async def list_batches(self, tenant: Tenant, dataset_id: str, request: PageRequest) -> Page[Batch]:
        """Return a page of succeeded batches in the order in which they count; of one dataset, or all if empty.

        Raises:
            NotFoundError: There is no such dataset.
        """
        query = select(batches).where(
            batches.c.tenant_id == id_of(tenant), batches.c.state == BatchState.SUCCEEDED.value
        )
        if request.cursor:
            query = query.where(batches.c.number > request.number)
        if dataset_id:
            query = query.where(batches.c.dataset_id == dataset_id)
        async with self.database.read() as connection:
            if dataset_id:
                await dataset_of(connection, id_of(tenant), dataset_id)
            rows = (await connection.execute(query.order_by(batches.c.number).limit(request.size + 1))).all()
        return cut_page([batch_from(row) for row in rows], request, lambda last: str(last.number))

    @whole
    async def list_files(self, tenant: Tenant, batch_id: str, request: PageRequest) -> Page[DataFile]:
        """Return a page of a succeeded batch's files in the order of their names.

        Raises:
            NotFoundError: There is no such batch.
            FailedPreconditionError: It has not succeeded.
        """
        async with self.database.read() as connection:
            batch = await _succeeded(connection, tenant, batch_id)
            query = select(files).where(files.c.batch_key == batch.key)
            if request.cursor:
                query = query.where(files.c.name > request.cursor)
            rows = (await connection.execute(query.order_by(files.c.name).limit(request.size + 1))).all()
        return cut_page([_file(row) for row in rows], request, lambda last: last.name)

    @whole
    async def get_file(self, tenant: Tenant, batch_id: str, name: str) -> DataFile:
        """Return a file of a succeeded batch.

        Raises:
            NotFoundError: There is no such batch or file.
            FailedPreconditionError: The batch has not succeeded.
        """
        async with self.database.read() as connection:
            batch = await _succeeded(connection, tenant, batch_id)
            query = select(files).where(files.c.batch_key == batch.key, files.c.name == name)
            row = (await connection.execute(query)).first()
        if row is None:
            raise NotFoundError.of("file", name)
        return _file(row)

    @whole
    async def kept_folders(self) -> Sequence[str]:
        """Return the folders of all batches that still need theirs: succeeded, not yet ended, or mirrored."""
        kept = (BatchState.SUCCEEDED.value, BatchState.LOADING.value)
        async with self.database.read() as connection:
            return list(
                (
                    await connection.execute(
                        select(batches.c.folder).where(batches.c.state.in_(kept) | named_by_mirror())
                    )
                ).scalars()
            )


def batch_from(row: Row[Any]) -> Batch:
    """Make a batch of its row."""
    return Batch(
        id=row.id,
        dataset_id=row.dataset_id,
        state=BatchState(row.state),
        create_time=row.create_time,
        end_time=row.end_time,
        number=row.number,
        ingest_time=row.ingest_time,
        rows=row.rows,
        bytes=row.bytes,
        file_count=row.file_count,
        format=row.format,
        file_name=row.file_name,
        sha256=row.sha256,
        byte_count=row.byte_count,
        job_id=row.job_id,
        errors=row.errors,
    )


async def add_files(
    connection: AsyncConnection, batch_key: int, added: Sequence[DataFile], field_set_id: int | None
) -> None:
    """Write down files of a batch; they count when it does."""
    if added:
        rows = [_file_row(file) | {"batch_key": batch_key, "field_set_id": field_set_id} for file in added]
        await connection.execute(insert(files), rows)


async def succeed_batch(
    connection: AsyncConnection, batch_key: int, place: BatchPlace, counted: Sequence[DataFile], **upload: Any
) -> Batch:
    """Make a batch count from this transaction's commit on; `upload` holds what only an upload has."""
    values = {
        "state": BatchState.SUCCEEDED.value,
        "number": place.number,
        "ingest_time": place.ingest_time,
        "end_time": place.ingest_time,
        "rows": sum(file.rows for file in counted),
        "bytes": sum(file.bytes for file in counted),
        "file_count": len(counted),
        **upload,
    }
    query = update(batches).where(batches.c.key == batch_key).values(values).returning(batches)
    return batch_from((await connection.execute(query)).one())


async def drop_batch(connection: AsyncConnection, batch_key: int, state: BatchState) -> None:
    """End an export's batch without effect, and forget its files."""
    await connection.execute(delete(files).where(files.c.batch_key == batch_key))
    values: Mapping[str, Any] = {"state": state.value, "end_time": await database_time(connection)}
    await connection.execute(update(batches).where(batches.c.key == batch_key).values(values))


async def files_of(connection: AsyncConnection, batch_key: int) -> list[DataFile]:
    """Return the recorded files of a batch, whether it counts or not."""
    query = select(files).where(files.c.batch_key == batch_key).order_by(files.c.name)
    return [_file(row) for row in await connection.execute(query)]


def batch_by_id(tenant_id: Any, batch_id: str) -> Select[Any]:
    """Select a batch of any state by its id."""
    return select(batches).where(batches.c.tenant_id == tenant_id, batches.c.id == batch_id)


async def _existing(connection: AsyncConnection, tenant_id: Any, batch_id: str) -> Row[Any]:
    row: Row[Any] | None = (await connection.execute(batch_by_id(tenant_id, batch_id))).first()
    if row is None:
        raise NotFoundError.of("batch", batch_id)
    return row


async def _succeeded(connection: AsyncConnection, tenant: Tenant, batch_id: str) -> Row[Any]:
    row = await _existing(connection, id_of(tenant), batch_id)
    if row.state != BatchState.SUCCEEDED:
        raise FailedPreconditionError(
            "BATCH_NOT_SUCCEEDED",
            f"The batch '{batch_id}' is {row.state.upper()}; only the files of a SUCCEEDED batch can be seen.",
            metadata={"batch_id": batch_id, "state": row.state.upper()},
        )
    return row


def _file(row: Row[Any]) -> DataFile:
    return DataFile(row.name, row.path, row.rows, row.bytes, row.sha256)


def _file_row(file: DataFile) -> dict[str, Any]:
    return {
        "name": file.name,
        "path": file.path,
        "rows": file.rows,
        "bytes": file.bytes,
        "sha256": file.sha256,
    }
