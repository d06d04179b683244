"""Datasets: made, found, changed, looked into, and what those of a class know together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from profile_export.application.ports import Lake
from profile_export.domain.catalog.batches import DatasetContent, MirrorStatus
from profile_export.domain.catalog.datasets import (
    CLASSES,
    Dataset,
    DatasetChange,
    NewDataset,
    Tenant,
    union_schema,
)
from profile_export.domain.errors import InvalidArgumentError, NotFoundError
from profile_export.domain.lists import DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE, Page, PageRequest
from profile_export.domain.schemas.types import ObjectType, is_wide
from profile_export.lake.rows import first_rows
from profile_export.processes.turns import compute, compute_if
from profile_export.store.catalog.datasets import Catalog
from profile_export.store.files.batches import Batches
from profile_export.store.files.mirrors import Mirrors

_Answer = TypeVar("_Answer")


@dataclass(frozen=True, slots=True)
class ShownDataset:
    """A dataset, what counts of it, and how far its Iceberg mirror is; None where it has none and never had."""

    dataset: Dataset
    content: DatasetContent
    mirror: MirrorStatus | None

    @property
    def is_wide(self) -> bool:
        """Whether writing it down takes so long that it is done beside the loop."""
        return is_wide([self.dataset.fields])


class DatasetUseCases:
    """What callers do with datasets. Raises what the store's methods of the same names raise."""

    def __init__(
        self,
        catalog: Catalog,
        mirrors: Mirrors,
        batches: Batches,
        lake: Lake,
        new_id: Callable[[], str],
    ) -> None:
        self._catalog, self._mirrors, self._batches = catalog, mirrors, batches
        self._lake, self._new_id = lake, new_id

    async def create(self, tenant: Tenant, new: NewDataset, request_id: str) -> tuple[ShownDataset, bool]:
        """Make a dataset; True says that the request with this id had made it before."""
        dataset, replayed = await self._catalog.create_dataset(tenant, new, self._new_id(), request_id)
        return await self._shown(dataset), replayed

    async def get(self, tenant: Tenant, dataset_id: str) -> ShownDataset:
        """Return a dataset, also a deleted one that can be brought back."""
        return await self._shown(await self._catalog.look_dataset_up(tenant, dataset_id))

    async def list(self, tenant: Tenant, request: PageRequest, *, show_deleted: bool) -> Page[ShownDataset]:
        """Return a page of the tenant's datasets."""
        page = await self._catalog.list_datasets(tenant, request, show_deleted=show_deleted)
        show = await self._showing(page.items)
        return page.turned(show)

    async def update(self, tenant: Tenant, dataset_id: str, change: DatasetChange, etag: str) -> ShownDataset:
        """Change a dataset."""
        return await self._shown(await self._catalog.update_dataset(tenant, dataset_id, change, etag))

    async def delete(self, tenant: Tenant, dataset_id: str, etag: str) -> ShownDataset:
        """Delete a dataset."""
        return await self._shown(await self._catalog.delete_dataset(tenant, dataset_id, etag))

    async def undelete(self, tenant: Tenant, dataset_id: str) -> ShownDataset:
        """Bring a deleted dataset back."""
        return await self._shown(await self._catalog.undelete_dataset(tenant, dataset_id))

    async def preview(
        self,
        tenant: Tenant,
        dataset_id: str,
        row_count: int,
        write: Callable[[Iterator[Mapping[str, Any]]], _Answer],
    ) -> _Answer:
        """Return what `write` makes, beside the loop, of the newest rows; 0 means as many as a page has.

        Raises:
            InvalidArgumentError: `row_count` is negative.
        """
        if row_count < 0:
            raise InvalidArgumentError.of_field("row_count", "must not be negative.")
        count = min(row_count or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
        paths = [file.path for file in await self._batches.newest_files(tenant, dataset_id, count)]
        async with self._lake.readable(paths):
            rows = first_rows(self._lake.root / path for path in paths)
            return await compute(write, islice(rows, count))

    async def union(self, tenant: Tenant, schema_name: str) -> tuple[ObjectType, Sequence[Dataset]]:
        """Return what all sources of a class know together, and these sources.

        Raises:
            NotFoundError: There is no such class.
        """
        if schema_name not in CLASSES:
            raise NotFoundError.of("schema", schema_name)
        kind = CLASSES[schema_name]
        sources = await self._catalog.sources(tenant)
        fields = await compute_if(is_wide(source.fields for source in sources), union_schema, sources, kind)
        return fields, [source for source in sources if source.kind is kind]

    async def _shown(self, dataset: Dataset) -> ShownDataset:
        show = await self._showing([dataset])
        return show(dataset)

    async def _showing(self, datasets: Sequence[Dataset]) -> Callable[[Dataset], ShownDataset]:
        """Return what shows each of these datasets."""
        ids = [dataset.id for dataset in datasets]
        mirrors, contents = await self._mirrors.of(ids), await self._batches.contents_of(ids)
        nothing = DatasetContent()
        return lambda dataset: ShownDataset(
            dataset, contents.get(dataset.id, nothing), mirrors.get(dataset.id)
        )
