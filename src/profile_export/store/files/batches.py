"""Batches and their files: a batch counts from the commit of one transaction on."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple

from sqlalchemy import BigInteger, Row, Select, Text, bindparam, func, insert, select, type_coerce, update

from profile_export.domain.catalog.batches import (
    MOST_ERRORS,
    TAKEN_BACK,
    Batch,
    BatchState,
    DataFile,
    DatasetContent,
    RowError,
    Upload,
    check_revertible,
    not_succeeded,
)
from profile_export.domain.catalog.datasets import Tenant, missing_batch
from profile_export.domain.export.plan import ExportPlan
from profile_export.domain.export.receipt import RECEIPT_FILE, FilledBatch, StoredReceipt, receipt_of
from profile_export.domain.job import Job, PhaseTime
from profile_export.domain.lists import Order, Page, PageRequest, cursor_at, cut_page
from profile_export.store.catalog.tenants import BatchPlace, dataset_of, id_of, is_kept, is_seen, kept_dataset
from profile_export.store.db.columns import columns_of, value_of
from profile_export.store.db.database import MOST_AT_ONCE, Store, database_time, uninterruptible
from profile_export.store.db.lists import Columns, page_of
from profile_export.store.db.tables import batches, datasets, files, receipts, uploads
from profile_export.store.db.transactions import Transaction, characters, page_rows, slices
from profile_export.store.files.folders import drop

_ERRORS_TEXT = type_coerce(uploads.c.errors, Text)
_PLACE = func.row_number().over(partition_by=uploads.c.batch_key, order_by=uploads.c.file_name)


async def first_errors(
    connection: Transaction, batch_keys: Sequence[int]
) -> Mapping[tuple[int, str], tuple[RowError, ...]]:
    """Return errors of the first files that have some, by batch and file name; of each batch `MOST_ERRORS` at most."""
    if not batch_keys:
        return {}
    having = (
        select(uploads.c.batch_key, uploads.c.file_name, _ERRORS_TEXT.label("text"), _PLACE.label("place"))
        .where(uploads.c.batch_key.in_(batch_keys), _ERRORS_TEXT != "[]")
        .subquery()
    )
    # Each of these files has at least one error, so there is no need of more files than errors.
    query = select(having).where(having.c.place <= MOST_ERRORS).order_by(having.c.batch_key, having.c.place)
    kind: Any = uploads.c.errors.type
    shown: dict[tuple[int, str], tuple[RowError, ...]] = {}
    room: Counter[int] = Counter(dict.fromkeys(batch_keys, MOST_ERRORS))
    for row in await connection.execute(query):
        if room[row.batch_key]:
            errors = kind.adapter.validate_json(row.text)[: room[row.batch_key]]
            shown[row.batch_key, row.file_name] = errors
            room[row.batch_key] -= len(errors)
    return shown


_SHOWN = [column for column in uploads.c if column.name not in {"facts", "errors"}]
# Only the uploads of a batch can take much room: by their errors, or because they are many.
_CHARACTERS = func.coalesce(
    select(func.sum(characters(uploads.c.file_name, uploads.c.errors, uploads.c.folder)))
    .where(uploads.c.batch_key == batches.c.key)
    .scalar_subquery(),
    0,
)


_AS_THEY_COUNT, _BY_NAME = Order("number"), Order("name")


class Batches(Store):
    """Batches and data files of all tenants."""

    @uninterruptible
    async def get_batch(self, tenant: Tenant, batch_id: str) -> Batch:
        """Return a batch in any state.

        Raises:
            NotFoundError: The tenant has none of that id.
        """
        async with self.database.read() as connection:
            return await batch_from(connection, await existing_batch(connection, id_of(tenant), batch_id))

    @uninterruptible
    async def contents_of(self, dataset_ids: Collection[str]) -> Mapping[str, DatasetContent]:
        """Return what counts of these datasets; those of which nothing does are left out."""
        query = (
            select(
                batches.c.dataset_id,
                func.sum(batches.c.rows).label("rows"),
                func.sum(batches.c.bytes).label("bytes"),
                func.max(batches.c.ingest_time).label("last_ingest_time"),
            )
            .where(batches.c.dataset_id.in_(dataset_ids), batches.c.state == BatchState.SUCCEEDED)
            .group_by(batches.c.dataset_id)
        )
        async with self.database.read() as connection:
            return {
                row.dataset_id: DatasetContent(int(row.rows), int(row.bytes), row.last_ingest_time)
                for row in await connection.execute(query)
            }

    @uninterruptible
    async def list_batches(self, tenant: Tenant, dataset_id: str, request: PageRequest) -> Page[Batch]:
        """Return a page of batches; of one dataset, or all if empty.

        They are those that have succeeded, unless the filter says of which states, in the order in which they count.

        Raises:
            NotFoundError: There is no such dataset.
        """
        query = select(batches).where(batches.c.tenant_id == id_of(tenant), is_seen())
        columns: Columns = batches.c
        if all(condition.field != "state" for condition in request.filter):
            query = query.where(batches.c.state == BatchState.SUCCEEDED)
            # All of these have a number: said like this, it is found by its index.
            columns = {**batches.c, "number": type_coerce(batches.c.number, BigInteger())}
        query = page_of(query, request, columns, _AS_THEY_COUNT, batches.c.id)
        if dataset_id:
            query = query.where(batches.c.dataset_id == dataset_id)
        async with self.database.read() as connection:
            if dataset_id:
                await dataset_of(connection, id_of(tenant), dataset_id)
            rows, more = await page_rows(connection, query, request.size, _CHARACTERS)
            found = await _batches_from(connection, rows)
        order = request.order or _AS_THEY_COUNT
        return cut_page(found, request, lambda last: cursor_at(order.place(last)), has_more=more)

    @uninterruptible
    async def list_files(self, tenant: Tenant, batch_id: str, request: PageRequest) -> Page[DataFile]:
        """Return a page of a succeeded batch's files in the order of their names, or the reverse.

        Raises:
            NotFoundError: There is no such batch.
            FailedPreconditionError: It has not succeeded.
        """
        async with self.database.read() as connection:
            batch = await _succeeded(connection, tenant, batch_id)
            query = select(files).where(files.c.batch_key == batch.key)
            query = page_of(query, request, files.c, _BY_NAME, files.c.name)
            rows = await connection.all(query.limit(request.size + 1))
        listed = [value_of(DataFile, row) for row in rows]
        return cut_page(listed, request, lambda last: cursor_at(_BY_NAME.place(last, "name")))

    @uninterruptible
    async def get_file(self, tenant: Tenant, batch_id: str, name: str) -> DataFile:
        """Return a file of a succeeded batch.

        Raises:
            NotFoundError: There is no such batch or file.
            FailedPreconditionError: The batch has not succeeded.
        """
        async with self.database.read() as connection:
            batch = await _succeeded(connection, tenant, batch_id)
            query = select(files).where(files.c.batch_key == batch.key, files.c.name == name)
            return value_of(DataFile, await connection.existing(query, "file", name))

    @uninterruptible
    async def newest_files(self, tenant: Tenant, dataset_id: str, rows: int) -> Sequence[DataFile]:
        """Return files of a dataset's newest batches, newest batch first, enough for so many rows.

        Raises:
            NotFoundError: There is no such dataset.
        """
        query = (
            select(files)
            .join(batches, files.c.batch_key == batches.c.key)
            .where(batches.c.dataset_id == dataset_id, batches.c.state == BatchState.SUCCEEDED)
            .order_by(batches.c.number.desc(), files.c.name)
        )
        found: list[DataFile] = []
        async with self.database.read() as connection:
            await dataset_of(connection, id_of(tenant), dataset_id)
            # Every file has at least one row.
            for row in await connection.execute(query.limit(rows)):
                found.append(value_of(DataFile, row))
                rows -= row.rows
                if rows <= 0:
                    break
        return found

    @uninterruptible
    async def revert(self, tenant: Tenant, batch_id: str, reason: str) -> Batch:
        """Take a succeeded batch back; nobody sees it from here on. Doing so again changes nothing.

        Raises:
            NotFoundError: There is no such batch.
            FailedPreconditionError: It has not succeeded.
        """
        async with self.database.write() as connection:
            row = await existing_batch(connection, id_of(tenant), batch_id)
            batch = await batch_from(connection, row)
            if batch.state is BatchState.REVERTED:
                return batch
            check_revertible(batch)
            batch = await end_batch(connection, row, BatchState.REVERTED, reason)
            await drop(connection, [row.folder])
            connection.batches_changed()
            return batch


async def batch_from(connection: Transaction, row: Row[Any]) -> Batch:
    """Make a batch of its row and those of its uploads."""
    [batch] = await _batches_from(connection, [row])
    return batch


async def _batches_from(connection: Transaction, rows: Sequence[Row[Any]]) -> list[Batch]:
    sent: dict[int, list[Upload]] = defaultdict(list)
    keys = [row.key for row in rows if row.job_id is None]
    query = select(*_SHOWN).where(uploads.c.batch_key.in_(keys)).order_by(uploads.c.file_name)
    errors = await first_errors(connection, keys)
    for found in await connection.execute(query) if keys else ():
        told = errors.get((found.batch_key, found.file_name), ())
        sent[found.batch_key].append(value_of(Upload, found, errors=told))
    retentions = await _retentions(connection, rows)
    return [
        value_of(
            Batch,
            row,
            uploads=tuple(sent[row.key]),
            expire_time=row.ingest_time + retentions[row.key] if row.key in retentions else row.expire_time,
        )
        for row in rows
    ]


async def _retentions(connection: Transaction, rows: Sequence[Row[Any]]) -> dict[int, timedelta]:
    """Return how long their datasets keep batches that count; without those that are kept for ever."""
    counting = {row.key: row.dataset_id for row in rows if row.state == BatchState.SUCCEEDED}
    query = select(datasets.c.id, datasets.c.batch_retention).where(
        datasets.c.id.in_(set(counting.values())), datasets.c.batch_retention.is_not(None)
    )
    kept = {row.id: row.batch_retention for row in await connection.execute(query)} if counting else {}
    return {key: kept[dataset_id] for key, dataset_id in counting.items() if dataset_id in kept}


class AddedFile(NamedTuple):
    """A file of a batch; `field_set_id` is the key of the fields that it was written with, None for an export's."""

    batch_key: int
    file: DataFile
    field_set_id: int | None


async def add_files(connection: Transaction, added: Sequence[AddedFile]) -> None:
    """Write down files of batches; they count when these do."""
    if added:
        rows = [
            columns_of(file, files) | {"batch_key": batch_key, "field_set_id": field_set_id}
            for batch_key, file, field_set_id in added
        ]
        await connection.execute(insert(files), rows)


class CountedBatch(NamedTuple):
    """A batch that comes to count, as its row was: its place among others, and its files."""

    row: Row[Any]
    place: BatchPlace
    files: Sequence[DataFile]


async def succeed_batches(connection: Transaction, counted: Sequence[CountedBatch]) -> None:
    """Make batches count from this transaction's commit on."""
    rows = [
        {
            "of_batch": one.row.key,
            "state": BatchState.SUCCEEDED,
            "number": one.place.number,
            "ingest_time": one.place.ingest_time,
            "end_time": one.place.ingest_time,
            "rows": sum(file.rows for file in one.files),
            "bytes": sum(file.bytes for file in one.files),
            "file_count": len(one.files),
        }
        for one in counted
    ]
    await connection.execute(update(batches).where(batches.c.key == bindparam("of_batch")), rows)
    connection.batches_changed()


async def replace_batches(connection: Transaction, dataset_id: str, job_id: int) -> list[str]:
    """Hide what counts of a dataset before the batches of a job come to count; return the ids, by number.

    All of them in this one transaction, however many there are: half of them would be neither export.
    """
    hidden = {
        "state": BatchState.REPLACED,
        "state_reason": f"Replaced by the export job {job_id}.",
        "replaced_by": job_id,
    }
    query = (
        update(batches)
        .where(batches.c.dataset_id == dataset_id, batches.c.state == BatchState.SUCCEEDED)
        .values(hidden)
        .returning(batches.c.number, batches.c.id, batches.c.folder)
    )
    rows = sorted(await connection.all(query))
    await drop(connection, [row.folder for row in rows])
    return [row.id for row in rows]


async def end_batch(connection: Transaction, row: Row[Any], state: BatchState, reason: str = "") -> Batch:
    """End a batch without effect, or one that had an effect; its `end_time` is that of its first end."""
    values: Mapping[str, Any] = {
        "state": state,
        "state_reason": reason,
        "end_time": row.end_time or await database_time(connection),
    }
    query = update(batches).where(batches.c.key == row.key).values(values).returning(batches)
    return await batch_from(connection, await connection.one(query))


async def files_of(connection: Transaction, batch_key: int) -> list[DataFile]:
    """Return the recorded files of a batch, whether it counts or not."""
    query = select(files).where(files.c.batch_key == batch_key).order_by(files.c.name)
    return [value_of(DataFile, row) for row in await connection.execute(query)]


def batch_by_id(tenant_id: Any, batch_id: str) -> Select[Any]:
    """Select a batch of any state by its id, also one whose dataset is deleted."""
    return select(batches).where(batches.c.tenant_id == tenant_id, batches.c.id == batch_id)


async def existing_batch(connection: Transaction, tenant_id: Any, batch_id: str) -> Row[Any]:
    """Return the row of a batch of any state, within a transaction.

    Raises:
        NotFoundError: The tenant has none of that id, or its dataset is deleted.
    """
    row = await connection.first(batch_by_id(tenant_id, batch_id).where(is_seen()))
    if row is not None:
        return row
    kept = await connection.first(batch_by_id(tenant_id, batch_id).where(is_kept()))
    dataset = kept and await kept_dataset(connection, tenant_id, kept.dataset_id)
    raise missing_batch(batch_id, dataset)


async def _succeeded(connection: Transaction, tenant: Tenant, batch_id: str) -> Row[Any]:
    row = await existing_batch(connection, id_of(tenant), batch_id)
    if row.state != BatchState.SUCCEEDED:
        raise not_succeeded(batch_id, row.state)
    return row


# The JSON as it is stored, byte for byte, beside the value that it stands for.
_DOCUMENT = type_coerce(receipts.c.receipt, Text).label("document")


@dataclass(frozen=True, slots=True)
class UnwrittenReceipt:
    """A receipt that is not on the disk yet: its JSON, and where in the lake it belongs."""

    batch_key: int
    path: str
    document: bytes


class Receipts(Store):
    """Receipts of all tenants."""

    @uninterruptible
    async def get(self, tenant: Tenant, batch_id: str) -> StoredReceipt:
        """Return the receipt of a batch that counts.

        Raises:
            NotFoundError: There is no such batch, or it has none: it was uploaded, or its job has not succeeded.
            FailedPreconditionError: It was taken back, and its receipt with it.
        """
        async with self.database.read() as connection:
            batch = await existing_batch(connection, id_of(tenant), batch_id)
            query = select(receipts.c.receipt, _DOCUMENT).where(receipts.c.batch_key == batch.key)
            row = await connection.existing(query, "receipt", batch_id)
        if batch.state in TAKEN_BACK:
            raise not_succeeded(batch_id, batch.state)
        return StoredReceipt(row.receipt, row.document.encode(), batch.folder)

    @uninterruptible
    async def unwritten(self) -> Sequence[UnwrittenReceipt]:
        """Return the receipts that are to be put on the disk: of batches that count, which is where they still lie."""
        query = (
            select(receipts.c.batch_key, batches.c.folder, _DOCUMENT)
            .join(batches, batches.c.key == receipts.c.batch_key)
            .where(~receipts.c.written, batches.c.state == BatchState.SUCCEEDED, is_seen())
            .order_by(receipts.c.batch_key)
        )
        async with self.database.read() as connection:
            rows = await connection.all(query)
        return [
            UnwrittenReceipt(row.batch_key, f"{row.folder}/{RECEIPT_FILE}", row.document.encode())
            for row in rows
        ]

    @uninterruptible
    async def note_written(self, batch_keys: Sequence[int]) -> None:
        """Note that receipts are on the disk."""
        for some in slices(batch_keys, MOST_AT_ONCE):
            async with self.database.write() as connection:
                query = update(receipts).where(receipts.c.batch_key.in_(some))
                await connection.execute(query.values(written=True))


async def add_receipts(
    connection: Transaction,
    job: Job,
    phases: Sequence[PhaseTime],
    plan: ExportPlan,
    counted: Sequence[CountedBatch],
    replaced: Sequence[str],
) -> None:
    """Write down the receipts of a job, in the transaction in which it succeeds: of each batch that comes to count.

    `replaced` are the ids of the batches that the job has replaced.
    """
    rows = []
    for batch, place, counting in counted:
        filled = FilledBatch(batch.id, batch.folder, place.ingest_time, counting)
        receipt = receipt_of(job, plan, phases, filled, replaced)
        rows.append({"batch_key": batch.key, "receipt": receipt, "written": False})
    await connection.execute(insert(receipts), rows)
