"""The Iceberg mirror: what others find a table by."""

from __future__ import annotations

from profile_export.domain.catalog.batches import mirror_table


def test_a_datasets_table_is_named_by_its_id_so_that_renaming_the_dataset_does_not_move_it() -> None:
    assert mirror_table("64f0") == "profile_export.d_64f0"
