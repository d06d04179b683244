"""The Iceberg tables: what they hold after each change, and that no change is made on an old decision."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.table import StaticTable, Table

from profile_export.domain.catalog.batches import (
    MirrorConflictError,
    MirroredBatch,
    MirroredDataset,
    MirrorError,
    TableState,
    TypesChangedError,
)
from profile_export.lake import iceberg
from profile_export.lake.iceberg import MAX_SNAPSHOTS, IcebergMirror

DATASET = "0123456789abcdef01234567"
TABLE = MirroredDataset(DATASET, "People", "acme@x", "prod")
HOUR = timedelta(hours=1)
LONG_ID = "b" * 63  # as long as a batch id may be, but for its last character
Rows = Sequence[Mapping[str, Any]]


class Lake:
    """Batches of one dataset as files, and the mirror over them."""

    def __init__(self, data_dir: Path, keep: timedelta = HOUR) -> None:
        self.data_dir = data_dir
        self.root = data_dir / "lake"
        self.mirror = IcebergMirror(data_dir, keep)

    def batch(
        self, batch_id: str, *files: Rows, types: Mapping[str, pa.DataType] | None = None
    ) -> MirroredBatch:
        paths = []
        for number, rows in enumerate(files):
            table = pa.Table.from_pylist([{"_batch_id": batch_id, **row} for row in rows])
            for name, kind in (types or {}).items():
                table = table.set_column(
                    table.column_names.index(name), name, pa.array([row[name] for row in rows], kind)
                )
            paths.append(f"{DATASET}/{batch_id}/{number}.parquet")
            (self.root / paths[-1]).parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table, self.root / paths[-1])
        return MirroredBatch(batch_id, tuple(paths))

    def begun(self, *batches: MirroredBatch) -> TableState:
        state = self.mirror.rebuild(TABLE, None, batches)
        assert state
        return state

    def state(self) -> TableState:
        state = self.mirror.look(TABLE)
        assert state
        return state

    def table(self) -> Table:
        return StaticTable.from_metadata(self.state().metadata_location)

    def locations(self) -> list[str]:
        return [task.file.file_path for task in self.table().scan().plan_files()]

    def rows(self) -> list[dict[str, Any]]:
        frame = pl.scan_iceberg(self.state().metadata_location).collect()
        return [
            {name: value for name, value in row.items() if value is not None}
            for row in frame.sort("_batch_id").to_dicts()
        ]

    def ids(self) -> list[str]:
        return [row["_batch_id"] for row in self.rows()]

    def mirror_files(self) -> set[Path]:
        return {path for path in (self.data_dir / "iceberg" / DATASET).rglob("*") if path.is_file()}

    def catalog(self) -> SqlCatalog:
        return SqlCatalog("profile_export", uri=f"sqlite:///{self.data_dir / 'iceberg' / 'catalog.sqlite'}")


@pytest.fixture
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lake:
    monkeypatch.setenv("POLARS_ICEBERG_PLANNER", "pyiceberg")  # or it warns that the other is not installed
    return Lake(tmp_path / "data with spaces")


# --- What a table holds ---


def test_batches_are_added_where_they_lie_many_to_a_commit(lake: Lake) -> None:
    first = lake.batch("b1", [{"a": "x"}], [{"a": "y"}])
    second = lake.batch("b2", [{"a": "z"}])

    state = lake.begun(first, second)

    assert lake.ids() == ["b1", "b1", "b2"]
    assert sorted(lake.locations()) == sorted(
        f"file://{lake.root / path}" for path in first.files + second.files
    )
    assert (state.snapshots, state.sequence_number, state.oldest_sequence_number) == (1, 1, 1)
    assert not list((lake.data_dir / "iceberg" / DATASET).glob("data"))


def test_fields_that_a_later_batch_brings_at_any_depth_are_null_in_earlier_rows(lake: Lake) -> None:
    state = lake.begun(lake.batch("b1", [{"person": {"name": "n"}, "tags": [{"t": "u"}]}]))

    lake.mirror.sync(
        TABLE, state, [lake.batch("b2", [{"person": {"age": 3}, "tags": [{"s": 1.5}], "city": "Oslo"}])], []
    )

    assert lake.rows() == [
        {"_batch_id": "b1", "person": {"name": "n", "age": None}, "tags": [{"t": "u", "s": None}]},
        {
            "_batch_id": "b2",
            "person": {"name": None, "age": 3},
            "tags": [{"t": None, "s": 1.5}],
            "city": "Oslo",
        },
    ]


def test_every_column_is_optional_whatever_a_file_says(lake: Lake) -> None:
    batch = lake.batch("b1", [{"a": "x"}])
    with duckdb.connect() as connection:
        connection.execute(f"COPY (SELECT 'b1' AS _batch_id, 'x' AS a) TO '{lake.root / batch.files[0]}'")
    assert not all(field.nullable for field in pq.read_schema(lake.root / batch.files[0]))

    lake.begun(batch)

    assert all(field.optional for field in lake.table().schema().fields)


def test_decimals_with_more_digits_before_the_point_need_no_other_file(lake: Lake) -> None:
    small = lake.batch("b1", [{"d": Decimal("1.25")}], types={"d": pa.decimal128(9, 2)})
    state = lake.begun(small)

    lake.mirror.sync(
        TABLE,
        state,
        [lake.batch("b2", [{"d": Decimal("99999999999999999999.75")}], types={"d": pa.decimal128(22, 2)})],
        [],
    )

    assert [row["d"] for row in lake.rows()] == [Decimal("1.25"), Decimal("99999999999999999999.75")]
    assert f"file://{lake.root / small.files[0]}" in lake.locations()


@pytest.mark.parametrize(
    ("narrow", "wide", "read"),
    [
        ((1, pa.int64()), (2.5, pa.float64()), [1.0, 2.5]),
        ((1, pa.int64()), (Decimal("2.50"), pa.decimal128(21, 2)), [Decimal(1), Decimal("2.50")]),
        (
            (Decimal("1.5"), pa.decimal128(4, 1)),
            (Decimal("2.25"), pa.decimal128(5, 2)),
            [Decimal("1.5"), Decimal("2.25")],
        ),
        (
            ({"o": [{"n": 1}]}, pa.struct([("o", pa.list_(pa.struct([("n", pa.int64())])))])),
            ({"o": [{"n": 2.5}]}, pa.struct([("o", pa.list_(pa.struct([("n", pa.float64())])))])),
            [{"o": [{"n": 1.0}]}, {"o": [{"n": 2.5}]}],
        ),
        (([1, None], pa.list_(pa.int64())), ([2.5], pa.list_(pa.float64())), [[1.0, None], [2.5]]),
    ],
)
def test_a_type_that_iceberg_does_not_widen_to_is_reached_by_copies_of_the_narrower_files(
    lake: Lake, narrow: tuple[Any, pa.DataType], wide: tuple[Any, pa.DataType], read: list[Any]
) -> None:
    # given a table with the narrow type, and another column
    first = lake.batch("b1", [{"v": narrow[0], "a": "x"}], types={"v": narrow[1]})
    second = lake.batch("b2", [{"a": "y"}])
    third = lake.batch("b3", [{"v": wide[0], "a": "z"}], types={"v": wide[1]})
    state = lake.begun(first, second)

    # when a wider file comes
    with pytest.raises(TypesChangedError):
        lake.mirror.sync(TABLE, state, [third], [])
    unchanged = lake.state()
    rebuilt = lake.mirror.rebuild(TABLE, unchanged, [first, second, third])

    # then only the narrow file was copied, into the mirror's folder, and every row is there once
    assert unchanged == state
    assert lake.state() == rebuilt
    assert [row.get("v") for row in lake.rows()] == [read[0], None, read[1]]
    assert [row["a"] for row in lake.rows()] == ["x", "y", "z"]
    copied = [place for place in lake.locations() if f"{lake.root}" not in place]
    assert [Path(place).parent.name for place in copied] == ["b1"]
    # and no snapshot is left that would look for the old column under the new one's name
    assert lake.state().oldest_sequence_number > unchanged.sequence_number


def test_a_narrower_file_that_comes_after_the_type_was_widened_is_copied_alone(lake: Lake) -> None:
    state = lake.begun(lake.batch("b1", [{"v": 1.5}]))

    state = lake.mirror.sync(TABLE, state, [lake.batch("b2", [{"v": 7}])], [])

    assert [row["v"] for row in lake.rows()] == [1.5, 7.0]
    assert len([place for place in lake.locations() if str(lake.root) in place]) == 1
    assert (
        lake.mirror.rebuild(TABLE, state, [lake.batch("b1", [{"v": 1.5}]), lake.batch("b2", [{"v": 7}])])
        == state
    )


def test_s27_a_long_that_no_double_holds_is_no_row_of_a_table_of_doubles(lake: Lake) -> None:
    doubles, longs = lake.batch("b1", [{"v": 1.5}]), lake.batch("b2", [{"v": 2**53 + 1}])
    state = lake.begun(doubles)

    with pytest.raises(MirrorError, match="would lose digits"):
        lake.mirror.sync(TABLE, state, [longs], [])

    assert lake.rows() == [{"_batch_id": "b1", "v": 1.5}]


def test_arrays_on_more_levels_than_readers_take_are_an_error_that_says_so(lake: Lake) -> None:
    value: Any = 1
    for _ in range(49):
        value = [value]
    state = lake.begun(lake.batch("b1", [{"v": value}]))

    with pytest.raises(MirrorError, match="'b2' has fields within each other on more levels"):
        lake.mirror.sync(TABLE, state, [lake.batch("b2", [{"v": [value]}])], [])

    assert lake.state() == state


def test_types_that_do_not_go_together_are_an_error_that_names_them_until_one_is_gone(lake: Lake) -> None:
    text, number = lake.batch("b1", [{"v": "x"}]), lake.batch("b2", [{"v": 1.5}])
    state = lake.begun(text)

    with pytest.raises(TypesChangedError):
        lake.mirror.sync(TABLE, state, [number], [])
    with pytest.raises(MirrorError, match="'v' is double, but it is known as string"):
        lake.mirror.rebuild(TABLE, state, [text, number])
    assert lake.rows() == [{"_batch_id": "b1", "v": "x"}]

    lake.mirror.rebuild(TABLE, state, [number])
    assert lake.rows() == [{"_batch_id": "b2", "v": 1.5}]


def test_a_batch_without_rows_leaves_no_trace(lake: Lake) -> None:
    empty = MirroredBatch("b1", ())
    assert lake.mirror.rebuild(TABLE, None, [empty]) is None

    state = lake.begun(lake.batch("b2", [{"a": "x"}]))

    assert lake.mirror.sync(TABLE, state, [empty], ["b9"]) == state


# --- Taking out ---


def test_a_batch_is_taken_out_by_whole_files_and_nothing_is_written_but_metadata(lake: Lake) -> None:
    state = lake.begun(lake.batch("b1", [{"a": "x"}], [{"a": "y"}]), lake.batch("b2", [{"a": "z"}]))

    lake.mirror.sync(TABLE, state, [lake.batch("b3", [{"a": "w"}])], ["b1"])

    assert lake.ids() == ["b2", "b3"]
    assert {path.parent.name for path in lake.mirror_files()} == {"metadata"}
    assert len(list(lake.root.rglob("*.parquet"))) == 4


@pytest.mark.parametrize("writer", ["duckdb", "pyarrow"])
def test_batches_whose_long_ids_differ_in_the_last_character_are_told_apart(lake: Lake, writer: str) -> None:
    kept, gone = lake.batch(f"{LONG_ID}1", [{"a": "x"}]), lake.batch(f"{LONG_ID}2", [{"a": "y"}])
    if writer == "duckdb":
        with duckdb.connect() as connection:
            for batch in (kept, gone):
                place = lake.root / batch.files[0]
                connection.execute(
                    f"COPY (SELECT * FROM '{place}') TO '{place}.new' (FORMAT parquet, COMPRESSION zstd)"
                )
                Path(f"{place}.new").replace(place)
    state = lake.begun(kept, gone)

    lake.mirror.sync(TABLE, state, [], [gone.batch_id])

    assert lake.ids() == [kept.batch_id]


def test_a_file_that_does_not_say_its_batch_is_refused(lake: Lake) -> None:
    batch = lake.batch("b1", [{"a": "x"}])
    pq.write_table(pa.table({"_batch_id": ["b1", "other"]}), lake.root / batch.files[0])

    with pytest.raises(MirrorError, match="does not say that its rows are of the batch 'b1'"):
        lake.begun(batch)

    assert lake.mirror.look(TABLE) is None


# --- Old decisions ---


def test_of_two_changes_decided_on_one_state_one_is_made(lake: Lake) -> None:
    state = lake.begun(lake.batch("b1", [{"a": "x"}]))
    second = lake.batch("b2", [{"a": "y"}])
    lake.mirror.sync(TABLE, state, [second], [])

    with pytest.raises(MirrorConflictError):
        lake.mirror.sync(TABLE, state, [second], [])
    with pytest.raises(MirrorConflictError):
        lake.mirror.sync(TABLE, state, [], ["b1"])
    with pytest.raises(MirrorConflictError):
        lake.mirror.rebuild(TABLE, state, [])
    with pytest.raises(MirrorConflictError):
        lake.mirror.rebuild(TABLE, None, [second])

    assert lake.ids() == ["b1", "b2"]


def test_a_state_of_a_table_that_was_dropped_and_made_anew_is_an_old_one(lake: Lake) -> None:
    batch = lake.batch("b1", [{"a": "x"}])
    old = lake.begun(batch)
    lake.mirror.drop(TABLE)
    with pytest.raises(MirrorConflictError):
        lake.mirror.sync(TABLE, old, [batch], [])

    lake.begun(batch)

    with pytest.raises(MirrorConflictError):
        lake.mirror.sync(TABLE, old, [batch], [])
    assert lake.ids() == ["b1"]


def test_the_library_does_not_try_again_by_itself(lake: Lake) -> None:
    lake.begun(lake.batch("b1", [{"a": "x"}]))

    assert lake.table().properties["commit.retry.num-retries"] == "0"


# --- Rebuilding ---


def lose_catalog_entry(lake: Lake) -> None:
    catalog = lake.catalog()
    catalog.drop_table(f"acme_40x__prod.d_{DATASET}")
    catalog.close()


def lose_folder(lake: Lake) -> None:
    shutil.rmtree(lake.data_dir / "iceberg" / DATASET)


def lose_everything(lake: Lake) -> None:
    shutil.rmtree(lake.data_dir / "iceberg")


def tear_metadata(lake: Lake) -> None:
    for place in (lake.data_dir / "iceberg" / DATASET / "metadata").glob("*.json"):
        place.write_bytes(b"")


def move_data_directory(lake: Lake) -> None:
    moved = lake.data_dir.with_name("moved")
    lake.data_dir.rename(moved)
    lake.data_dir, lake.root, lake.mirror = moved, moved / "lake", IcebergMirror(moved, HOUR)


@pytest.mark.parametrize(
    "lose", [lose_catalog_entry, lose_folder, lose_everything, tear_metadata, move_data_directory]
)
def test_a_table_that_is_lost_is_built_anew_with_the_same_rows(lake: Lake, lose: Any) -> None:
    batches = [lake.batch("b1", [{"a": "x"}]), lake.batch("b2", [{"a": "y"}])]
    lake.begun(*batches)
    rows = lake.rows()

    lose(lake)
    assert lake.mirror.look(TABLE) is None
    lake.begun(*batches)

    assert lake.rows() == rows


def test_a_rebuild_puts_right_what_others_did_to_the_table(lake: Lake) -> None:
    # given a batch doubled, another lost and rows that no batch holds
    batches = [lake.batch(f"b{number}", [{"a": "x"}]) for number in range(4)]
    lake.begun(*batches)
    catalog = lake.catalog()
    table = catalog.load_table(f"acme_40x__prod.d_{DATASET}")
    table.add_files([f"file://{lake.root / batches[0].files[0]}"], check_duplicate_files=False)
    table.delete("_batch_id = 'b1'")
    table.append(pa.table({"_batch_id": ["foreign"], "a": ["y"]}))
    catalog.close()
    assert lake.ids() == ["b0", "b0", "b2", "b3", "foreign"]

    state = lake.mirror.rebuild(TABLE, lake.state(), batches)

    assert lake.ids() == ["b0", "b1", "b2", "b3"]
    assert lake.mirror.rebuild(TABLE, state, batches) == state


def test_dropping_a_table_leaves_the_lake_alone_and_may_be_repeated(lake: Lake) -> None:
    batch = lake.batch("b1", [{"a": "x"}])
    lake.begun(batch)

    lake.mirror.drop(TABLE)
    lake.mirror.drop(TABLE)

    assert lake.mirror.look(TABLE) is None
    assert not (lake.data_dir / "iceberg" / DATASET).exists()
    assert (lake.root / batch.files[0]).exists()


def test_a_folder_whose_path_iceberg_would_cut_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MirrorError, match=r"a '\?' or '#' in its path"):
        IcebergMirror(tmp_path / "a#b", HOUR).look(TABLE)


def test_a_table_that_was_in_the_namespace_of_all_tenants_moves_to_its_own_as_it_is(lake: Lake) -> None:
    state = lake.begun(lake.batch("b1", [{"a": "x"}]))
    catalog = lake.catalog()
    catalog.create_namespace("profile_export")
    catalog.rename_table(f"acme_40x__prod.d_{DATASET}", f"profile_export.d_{DATASET}")

    assert lake.mirror.look(TABLE) == state
    lake.mirror.sync(TABLE, state, [lake.batch("b2", [{"a": "y", "_profile_id": "p"}])], [])

    assert lake.rows() == [{"_batch_id": "b1", "a": "x"}, {"_batch_id": "b2", "a": "y", "_profile_id": "p"}]
    assert catalog.list_tables("profile_export") == []
    assert catalog.load_namespace_properties("acme_40x__prod") == {"org": "acme@x", "sandbox": "prod"}
    # and one that is there yet is dropped with its dataset
    catalog.rename_table(f"acme_40x__prod.d_{DATASET}", f"profile_export.d_{DATASET}")
    lake.mirror.drop(TABLE)
    assert catalog.list_tables("profile_export") == []
    catalog.close()


# --- Tags and properties ---


def tags(lake: Lake) -> dict[str, int]:
    """The batches that have a tag, and how many rows the table had at it."""
    table = lake.table()
    refs = {name: ref for name, ref in table.refs().items() if name != "main"}
    return {name: table.scan(snapshot_id=ref.snapshot_id).to_arrow().num_rows for name, ref in refs.items()}


def test_each_batch_has_a_tag_that_goes_with_its_snapshot(tmp_path: Path) -> None:
    lake, hasty = Lake(tmp_path), IcebergMirror(tmp_path, timedelta(0))
    state = lake.begun(lake.batch("main", [{"n": 1}]), lake.batch("b1", [{"n": 1}]))
    state = lake.mirror.sync(TABLE, state, [lake.batch("b2", [{"n": 2}])], [])
    # What replaces takes the place of the others in one commit, seen half by nobody.
    state = lake.mirror.sync(
        TABLE, state, [replace(lake.batch("b3", [{"n": 3}]), job_id=7)], ["main", "b1", "b2"]
    )
    assert tags(lake) == {"batch-main": 2, "batch-b1": 2, "batch-b2": 3, "batch-b3": 1}
    # A batch without a file has a tag where the table changes with it.
    state = lake.mirror.sync(TABLE, state, [MirroredBatch("b4", ())], ["b3"])
    assert tags(lake)["batch-b4"] == 0

    hasty.clean(TABLE)

    assert tags(lake) == {"batch-b4": 0}
    assert lake.table().properties["profile-export.last-batch-id"] == "b4"
    # and a column that changes its type takes the older ones with it
    batches = [lake.batch("b4", [{"n": 1.5}]), lake.batch("b5", [{"n": 2}])]
    lake.mirror.rebuild(TABLE, lake.state(), batches)
    assert tags(lake) == {"batch-b4": 2, "batch-b5": 2}


def test_a_table_has_so_many_tags_and_no_more(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iceberg, "MAX_TAGS", 3)
    batches = [lake.batch(f"b{number}", [{"n": number}]) for number in range(7)]
    state = lake.begun(*batches[:4])
    assert tags(lake) == dict.fromkeys(["batch-b1", "batch-b2", "batch-b3"], 4)

    for batch in batches[4:6]:
        state = lake.mirror.sync(TABLE, state, [batch], [])

    assert len(tags(lake)) == 3
    assert {"batch-b4": 5, "batch-b5": 6}.items() <= tags(lake).items()
    # A rebuild gives one to what it finds missing alone.
    lake.mirror.rebuild(TABLE, state, batches)
    assert tags(lake) == {"batch-b4": 5, "batch-b5": 6, "batch-b6": 7}


# --- Short metadata ---


def test_a_snapshot_is_kept_for_a_while_after_it_was_the_newest(tmp_path: Path) -> None:
    lake, hasty = Lake(tmp_path), IcebergMirror(tmp_path, timedelta(0))
    state = lake.begun(lake.batch("b1", [{"a": "x"}]))
    lake.mirror.sync(TABLE, state, [lake.batch("b2", [{"a": "y"}])], ["b1"])

    kept = lake.mirror.clean(TABLE)
    expired = hasty.clean(TABLE)

    assert kept
    assert kept.oldest_sequence_number == 1
    assert expired
    assert (expired.oldest_sequence_number, expired.snapshots) == (expired.sequence_number, 1)
    assert [row["_batch_id"] for row in lake.table().scan().to_arrow().to_pylist()] == ["b2"]
    assert IcebergMirror(tmp_path, HOUR).clean(replace(TABLE, id="no such dataset")) is None


def test_what_a_killed_commit_and_expired_snapshots_leave_is_removed_once_it_is_old(tmp_path: Path) -> None:
    # given expired snapshots, a copy of a file that is needed, and files that nothing names
    lake, hasty = Lake(tmp_path), IcebergMirror(tmp_path, timedelta(0))
    state = lake.begun(lake.batch("b1", [{"n": 1.5}]))
    state = lake.mirror.sync(TABLE, state, [lake.batch("b2", [{"n": 2.5}])], ["b1"])
    lake.mirror.sync(TABLE, state, [lake.batch("b3", [{"n": 3}])], [])
    folder = tmp_path / "iceberg" / DATASET
    left = [folder / "metadata" / "left-m0.avro", folder / "data" / "0" / "left.parquet"]
    for place in left:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(b"")

    # when they are young, and when they are old
    hasty.clean(TABLE)
    young = [place.exists() for place in left]
    long_ago = time.time() - 2 * HOUR.total_seconds()
    for place in lake.mirror_files():
        os.utime(place, (long_ago, long_ago))
    hasty.clean(TABLE)

    # then a commit under way could still have named them, and later they are gone
    assert young == [True, True]
    assert not any(place.exists() for place in left)
    assert len([place for place in lake.mirror_files() if place.name.startswith("snap-")]) == 1
    assert lake.table().scan().to_arrow().sort_by("n").column("n").to_pylist() == [2.5, 3.0]


@pytest.mark.slow
def test_many_small_commits_leave_few_snapshots_and_manifests(lake: Lake) -> None:
    batches = [lake.batch(f"b{number:03}", [{"a": "x"}]) for number in range(MAX_SNAPSHOTS + 5)]
    state = lake.begun(batches[0])

    for batch in batches[1:]:
        state = lake.mirror.sync(TABLE, state, [batch], [])

    assert state.snapshots <= MAX_SNAPSHOTS
    snapshot = lake.table().current_snapshot()
    assert snapshot
    assert len(snapshot.manifests(lake.table().io)) <= 20
    assert lake.ids() == [batch.batch_id for batch in batches]
