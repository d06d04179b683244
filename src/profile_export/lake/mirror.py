"""The Iceberg mirror as a server holds it: PyIceberg is loaded where tables are changed, in another process."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from profile_export.domain.catalog.batches import MirroredBatch, MirroredDataset, TableState

if TYPE_CHECKING:
    from profile_export.lake.iceberg import IcebergMirror


@dataclass(frozen=True, slots=True)
class MirrorTables:
    """The tables of `IcebergMirror`, which takes the same arguments and says what its methods do."""

    data_dir: Path
    keep: timedelta
    database_url: str | None = None

    def look(self, dataset: MirroredDataset) -> TableState | None:
        """Return where the table stands."""
        return self._loaded().look(dataset)

    def sync(
        self,
        dataset: MirroredDataset,
        base: TableState,
        add: Sequence[MirroredBatch],
        remove: Collection[str],
    ) -> TableState:
        """Add batches and take others out."""
        return self._loaded().sync(dataset, base, add, remove)

    def rebuild(
        self, dataset: MirroredDataset, base: TableState | None, batches: Sequence[MirroredBatch]
    ) -> TableState | None:
        """Make the table hold exactly these batches."""
        return self._loaded().rebuild(dataset, base, batches)

    def clean(self, dataset: MirroredDataset) -> TableState | None:
        """Expire snapshots, and remove what nothing names any more."""
        return self._loaded().clean(dataset)

    def drop(self, dataset: MirroredDataset) -> None:
        """Drop the table."""
        self._loaded().drop(dataset)

    def _loaded(self) -> IcebergMirror:
        from profile_export.lake.iceberg import IcebergMirror  # noqa: PLC0415 - a third of what a server loads

        return IcebergMirror(self.data_dir, self.keep, self.database_url)
