"""The Iceberg mirrors: what the tables lack, who may change one, which files it may name, how far it is."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, Row, bindparam, delete, exists, func, select, update

from profile_export.domain.catalog.batches import (
    TAKEN_BACK,
    BatchState,
    MirroredBatch,
    MirroredDataset,
    MirrorStatus,
    TableState,
)
from profile_export.store.db.columns import value_of
from profile_export.store.db.database import Database, Store, database_time, uninterruptible
from profile_export.store.db.tables import batches, datasets, files, mirrored_batches, mirrors, tenants
from profile_export.store.db.transactions import Transaction

LEASE_TTL = timedelta(seconds=60)
MAX_BACK_OFF = timedelta(minutes=5)
# Batches of one Iceberg commit; the rest follows with the next.
MAX_BATCHES = 500
_COUNTS = batches.c.state == BatchState.SUCCEEDED
_NUMBER = func.coalesce(mirrors.c.number, 0)


@dataclass(frozen=True, slots=True)
class MirrorWork:
    """What a holder is to do to a table.

    `add` and `remove` are right if the table stands at `snapshot_id`; `number` is the highest number that it holds all
    batches up to afterwards. `check` asks to look even if nothing is to be done, and to expire snapshots; `drop` asks
    for nothing but to drop the table.
    """

    dataset: MirroredDataset
    holder: str
    snapshot_id: int | None = None
    add: tuple[MirroredBatch, ...] = ()
    remove: tuple[str, ...] = ()
    removed_keys: tuple[int, ...] = ()
    number: int = 0
    check: bool = False
    drop: bool = False


class MirrorLostError(Exception):
    """The table is another's to change by now: whatever was to be written down is void."""


class Mirrors(Store):
    """The mirrors of all tenants' datasets."""

    def __init__(
        self, database: Database, lease: timedelta = LEASE_TTL, max_batches: int = MAX_BATCHES
    ) -> None:
        """Make one whose leases last so long, and whose claims take so many batches at most."""
        super().__init__(database)
        self._lease = lease
        self._max_batches = max_batches

    @uninterruptible
    async def claim(self, holder: str) -> MirrorWork | None:
        """Take a table that lacks changes, is to be looked at or is to be dropped; None if there is none due.

        Batches to be added are written down as ones that the table may name, before anything happens to it.
        """
        async with self.database.read() as connection:
            if await _due(connection) is None:
                return None
        async with self.database.write() as connection:
            dataset_id = await _due(connection)
            if dataset_id is None:
                return None
            await connection.insert_new(mirrors, {"dataset_id": dataset_id})
            now = await database_time(connection)
            row = await connection.one(
                update(mirrors)
                .where(mirrors.c.dataset_id == dataset_id)
                .values(holder=holder, expire_time=now + self._lease)
                .returning(mirrors)
            )
            dataset = await _mirrored(connection, dataset_id)
            if row.drop_asked:
                return MirrorWork(dataset, holder, drop=True)
            check = row.check_time is not None and row.check_time <= now
            work = MirrorWork(dataset, holder, row.snapshot_id, check=check)
            return await _filled(connection, work, row.number, self._max_batches)

    @uninterruptible
    async def everything(self, work: MirrorWork) -> MirrorWork:
        """Return the work of making the table hold all that counts, whatever it holds.

        Raises:
            MirrorLostError: The lease was taken over.
        """
        async with self.database.write() as connection:
            await _held(connection, work)
            return await _filled(connection, work, 0, None)

    @uninterruptible
    async def renew(self, work: MirrorWork) -> None:
        """Renew the lease.

        Raises:
            MirrorLostError: It was taken over.
        """
        async with self.database.write() as connection:
            await _held(connection, work)
            await _write(connection, work, expire_time=await database_time(connection) + self._lease)

    @uninterruptible
    async def done(self, work: MirrorWork, state: TableState | None, check_in: timedelta) -> None:
        """Write down that the work is done and give the lease back.

        `state` is where the table stands now, None if there is none; `check_in`, when to look again at the latest.

        Raises:
            MirrorLostError: The lease was taken over.
        """
        async with self.database.write() as connection:
            row = await _held(connection, work)
            now = await database_time(connection)
            await _take_out(connection, work, state, row.table_uuid)
            changed = state is not None and state.snapshot_id != row.snapshot_id
            checked = work.check or row.check_time is None
            await _write(
                connection,
                work,
                number=max(row.number, work.number),
                snapshot_id=state.snapshot_id if state else None,
                table_uuid=state.uuid if state else None,
                metadata_location=state.metadata_location if state else "",
                mirror_time=now if changed else row.mirror_time,
                check_time=now + check_in if checked else row.check_time,
                error_message="",
                failures=0,
                not_before=None,
                holder=None,
            )

    @uninterruptible
    async def failed(self, work: MirrorWork, message: str) -> None:
        """Write down why the work failed, and give the lease back; it is tried again later, each time later still.

        Raises:
            MirrorLostError: The lease was taken over.
        """
        async with self.database.write() as connection:
            row = await _held(connection, work)
            wait = min(timedelta(seconds=2 ** min(row.failures, 10)), MAX_BACK_OFF)
            await _write(
                connection,
                work,
                error_message=message,
                failures=row.failures + 1,
                not_before=await database_time(connection) + wait,
                holder=None,
            )

    @uninterruptible
    async def release(self, work: MirrorWork) -> None:
        """Give the lease back with the work undone; of no effect if it was taken over."""
        async with self.database.write() as connection:
            await _write(connection, work, holder=None)

    @uninterruptible
    async def dropped(self, work: MirrorWork) -> None:
        """Write down that the table is gone, and forget the mirror.

        Raises:
            MirrorLostError: The lease was taken over.
        """
        async with self.database.write() as connection:
            await _held(connection, work)
            for table in (mirrored_batches, mirrors):
                await connection.execute(delete(table).where(table.c.dataset_id == work.dataset.id))

    @uninterruptible
    async def release_all(self) -> None:
        """Take the leases of a former process and have every table looked at.

        Only a process that has just locked the data directory may say so.
        """
        async with self.database.write() as connection:
            now = await database_time(connection)
            await connection.execute(update(mirrors).values(holder=None, not_before=None, check_time=now))

    @uninterruptible
    async def of(self, dataset_ids: Collection[str]) -> Mapping[str, MirrorStatus]:
        """Return how far the mirrors of these datasets are.

        Those that are deleted, or not mirrored and never were, are left out.
        """
        # Also one that no longer counts, until the table follows.
        in_table = (batches.c.dataset_id == datasets.c.id) & (batches.c.number <= _NUMBER)
        held = mirrored_batches.join(batches)
        of_table = in_table & mirrored_batches.c.removed_at.is_(None)
        last = (
            select(batches.c.id).select_from(held).where(of_table).order_by(batches.c.number.desc()).limit(1)
        )
        query = (
            select(
                *_OF_DATASET,
                datasets.c.iceberg,
                mirrors,
                select(func.count()).select_from(held).where(of_table).scalar_subquery().label("held"),
                select(func.count()).where(_to_add()).scalar_subquery().label("to_add"),
                select(func.count()).where(*to_take_out()).scalar_subquery().label("to_remove"),
                last.scalar_subquery().label("last_batch_id"),
            )
            .select_from(datasets.join(tenants).outerjoin(mirrors))
            .where(
                datasets.c.id.in_(dataset_ids),
                datasets.c.iceberg | mirrors.c.dataset_id.is_not(None),
                datasets.c.delete_time.is_(None),
            )
        )
        async with self.database.read() as connection:
            return {row.id: _status(row) for row in await connection.execute(query)}


def named_by_mirror() -> ColumnElement[bool]:
    """Say, in a query over batches, that a kept snapshot of a table may name the batch's files: they have to stay."""
    return exists().where(mirrored_batches.c.batch_key == batches.c.key)


async def ask_drop(connection: Transaction, dataset_id: str) -> None:
    """Have the table of a dataset dropped soon, within the transaction that deletes it."""
    await _set(connection, dataset_id, drop_asked=True)


async def ask_table(connection: Transaction, dataset_id: str) -> None:
    """Have a table for a dataset again, within the transaction that brings it back.

    Where its drop was asked for and is not done yet, the next holder looks whether the table still stands.
    """
    await _set(connection, dataset_id, drop_asked=False, check_time=await database_time(connection))


async def _set(connection: Transaction, dataset_id: str, **values: Any) -> None:
    await connection.execute(update(mirrors).where(mirrors.c.dataset_id == dataset_id).values(values))


_OF_DATASET = (datasets.c.id, datasets.c.name, tenants.c.org, tenants.c.sandbox)


async def _mirrored(connection: Transaction, dataset_id: str) -> MirroredDataset:
    query = select(*_OF_DATASET).select_from(datasets.join(tenants)).where(datasets.c.id == dataset_id)
    return value_of(MirroredDataset, await connection.one(query))


async def _due(connection: Transaction) -> str | None:
    """Return the dataset to look after next: of those that are due, the one that has waited longest."""
    now = await database_time(connection)
    to_be_changed = exists().where(_to_add()) | exists().where(*to_take_out())
    mirrored = datasets.c.iceberg & datasets.c.delete_time.is_(None)
    lacks = mirrored & (to_be_changed | (mirrors.c.check_time <= now))
    query = (
        select(datasets.c.id)
        .select_from(datasets.outerjoin(mirrors))
        .where(
            mirrors.c.holder.is_(None) | (mirrors.c.expire_time <= now),
            mirrors.c.not_before.is_(None) | (mirrors.c.not_before <= now),
            lacks | mirrors.c.drop_asked,
        )
        .order_by(mirrors.c.mirror_time.nulls_first(), datasets.c.id)
        .limit(1)
    )
    dataset_id: str | None = await connection.scalar(query)
    return dataset_id


def _to_add() -> ColumnElement[bool]:
    """Say, in a query over datasets, which batches a table lacks."""
    return (batches.c.dataset_id == datasets.c.id) & (batches.c.number > _NUMBER) & _COUNTS


def to_take_out() -> tuple[ColumnElement[bool], ...]:
    """Say, in a query over datasets, which batches a table holds that count no longer."""
    return (
        batches.c.dataset_id == datasets.c.id,
        batches.c.state.in_(TAKEN_BACK),
        mirrored_batches.c.batch_key == batches.c.key,
        mirrored_batches.c.removed_at.is_(None),
    )


async def _filled(connection: Transaction, work: MirrorWork, after: int, most: int | None) -> MirrorWork:
    """Return the work with what is to be added (batches behind a number) and taken out, and write the first down."""
    to_add = (
        select(batches.c.key, batches.c.id, batches.c.number, batches.c.job_id)
        .where(batches.c.dataset_id == work.dataset.id, batches.c.number > after, _COUNTS)
        .order_by(batches.c.number)
        .limit(most)
        .subquery()
    )
    rows = await connection.execute(
        select(to_add, files.c.path)
        .join_from(to_add, files, files.c.batch_key == to_add.c.key, isouter=True)
        .order_by(to_add.c.number, files.c.name)
    )
    added: dict[int, MirroredBatch] = {}
    number = after
    for row in rows:
        number = row.number
        batch = added.get(row.key, MirroredBatch(row.id, (), row.job_id))
        paths = () if row.path is None else (row.path,)
        added[row.key] = replace(batch, files=(*batch.files, *paths))
    if added:
        intents = [{"batch_key": key, "dataset_id": work.dataset.id} for key in added]
        await connection.insert_new(mirrored_batches, intents)
    removed = await connection.all(
        select(batches.c.key, batches.c.id)
        .select_from(datasets)
        .where(datasets.c.id == work.dataset.id, *to_take_out())
    )
    return replace(
        work,
        add=tuple(added.values()),
        remove=tuple(row.id for row in removed),
        removed_keys=tuple(row.key for row in removed),
        number=number,
    )


async def _take_out(
    connection: Transaction, work: MirrorWork, state: TableState | None, former_uuid: str | None
) -> None:
    """Remember which snapshots may name batches that were taken out, and forget those that none names any more."""
    of_dataset = mirrored_batches.c.dataset_id == work.dataset.id
    if state is None or state.uuid != former_uuid:
        # Snapshots of a table that is no more.
        await connection.execute(
            delete(mirrored_batches).where(of_dataset, mirrored_batches.c.removed_at.is_not(None))
        )
    if work.removed_keys:
        number = state.sequence_number if state else 0
        await connection.execute(
            update(mirrored_batches)
            .where(mirrored_batches.c.batch_key == bindparam("key"))
            .values(removed_at=number),
            [{"key": key} for key in work.removed_keys],
        )
    oldest = state.oldest_sequence_number if state else 0
    await connection.execute(
        delete(mirrored_batches).where(of_dataset, mirrored_batches.c.removed_at <= oldest)
    )


async def _held(connection: Transaction, work: MirrorWork) -> Row[Any]:
    query = select(mirrors).where(mirrors.c.dataset_id == work.dataset.id, mirrors.c.holder == work.holder)
    row = await connection.first(query)
    if row is None:
        message = f"the mirror of {work.dataset.id} is no longer {work.holder}'s"
        raise MirrorLostError(message)
    return row


async def _write(connection: Transaction, work: MirrorWork, **values: Any) -> None:
    held = update(mirrors).where(mirrors.c.dataset_id == work.dataset.id, mirrors.c.holder == work.holder)
    await connection.execute(held.values(values))


def _status(row: Row[Any]) -> MirrorStatus:
    of = value_of(MirroredDataset, row)
    return MirrorStatus(
        enabled=row.iceberg,
        table=f"{of.namespace}.{of.table}",
        metadata_location=row.metadata_location or "",
        mirrored_batches=row.held,
        pending_changes=row.to_add + row.to_remove,
        last_batch_id=row.last_batch_id or "",
        mirror_time=row.mirror_time,
        error_message=row.error_message or "",
    )
