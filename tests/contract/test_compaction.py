"""Merged files hold the rows of their sources, and no export can tell."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from profile_export.domain.catalog import batches as columns
from profile_export.domain.export.plan import ExportPlan, PinnedFile, SourcePart
from profile_export.lake import compaction as lake_compaction
from profile_export.lake import data_files as data_file
from profile_export.lake.compaction import CompactTask, compact
from profile_export.processes.messages import Limits
from profile_export.processes.supervisor import Pool
from profile_export.store.db.columns import digest_of
from tests.builders import plan_of
from tests.contract.house import children
from tests.contract.ingesting import CRM, Uploader
from tests.contract.strategies import Export, exports, exports_of_events
from tests.contract.test_engine_against_merge import Exporter, check_plan, exporter

__all__ = ["children", "exporter"]  # fixtures


def compacted(plan: ExportPlan, lake: Path) -> ExportPlan:
    """The plan with all files of a dataset that were written with the same fields merged into one."""
    sources = []
    for source in plan.sources:
        fields = {digest_of(part.fields): part.fields for part in source.parts}
        together: dict[str, list[Path]] = {digest: [] for digest in fields}
        for part in source.parts:
            together[digest_of(part.fields)] += [lake / file.path for file in part.files]
        parts = []
        for digest, paths in together.items():
            target = f"{source.dataset_id}/{digest}/0.parquet"
            written = compact(CompactTask(tuple(paths), lake / target))
            parts.append(SourcePart(fields[digest], (PinnedFile(target, written.rows, written.bytes),)))
        sources.append(replace(source, parts=tuple(parts)))
    return replace(plan, sources=tuple(sources))


@pytest.mark.slow
@given(st.one_of(exports(), exports_of_events()))
@settings(max_examples=2, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@pytest.mark.timeout(600)
def test_the_engine_exports_from_compacted_files_what_the_reference_says(
    exporter: Exporter, export: Export
) -> None:
    alone = tuple(
        replace(part, rows=tuple(row for row in part.rows if row.batch_id == batch))
        for part in export.parts
        for batch in sorted({row.batch_id for row in part.rows})
    )
    with TemporaryDirectory() as folder:
        lake = Path(folder)
        plan = compacted(plan_of(alone, **export.options, lake=lake), lake)

        check_plan(exporter, plan, replace(export, parts=alone), lake)


def written(folder: Path, number: int, sent: list[dict[str, Any]]) -> list[Path]:
    uploader = Uploader(folder / str(number))
    uploader.folder.mkdir()
    result = uploader.ingest(sent, CRM)
    return [uploader.folder / "files" / file.name for file in result.files]


@pytest.mark.parametrize("most_open", [100, 2])
def test_a_merged_file_holds_the_rows_of_its_sources_sorted_by_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most_open: int
) -> None:
    # Small groups and little read ahead, so that sources are cut within and between what is read.
    monkeypatch.setattr(lake_compaction, "ROWS_PER_GROUP", 78)
    monkeypatch.setattr(lake_compaction, "_BYTES_READ_AHEAD", 0)
    monkeypatch.setattr(lake_compaction, "_MOST_OPEN", most_open)
    people = [{"crmId": f"{number % 150}", "tags": ["x"], "n": number} for number in range(500)]
    sources = [path for part in range(5) for path in written(tmp_path, part, people[part::5])]

    file = compact(CompactTask(tuple(sources), tmp_path / "new" / "0.parquet"))

    merged = pq.read_table(tmp_path / "new" / "0.parquet")
    order = [(columns.KEY_HIGH, "ascending"), (columns.KEY_LOW, "ascending"), (columns.ROW, "ascending")]
    expected = pa.concat_tables([pq.read_table(path) for path in sources]).sort_by(order)
    by_row = [*order, ("n", "ascending")]
    assert merged.sort_by(by_row).equals(expected.sort_by(by_row))
    keys = merged.select([name for name, _ in order]).to_pylist()
    assert keys == expected.select([name for name, _ in order]).to_pylist()
    assert (file.name, file.rows) == ("0.parquet", 500)
    assert pq.ParquetFile(tmp_path / "new" / "0.parquet").num_row_groups > 3
    assert [left.name for left in (tmp_path / "new").iterdir()] == ["0.parquet"]
    assert merged.schema == pq.read_schema(sources[0])


def test_long_rows_are_in_row_groups_of_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (data_file, lake_compaction):
        monkeypatch.setattr(module, "BYTES_PER_GROUP", 100_000)
    chance = random.Random(0)
    people = [{"crmId": f"{number}", "note": chance.randbytes(500).hex()} for number in range(1_000)]
    sources = [path for part in range(2) for path in written(tmp_path, part, people[part::2])]

    compact(CompactTask(tuple(sources), tmp_path / "new" / "0.parquet"))

    for path in (*sources, tmp_path / "new" / "0.parquet"):
        found = pq.read_metadata(path)
        groups = [found.row_group(number) for number in range(found.num_row_groups)]
        assert max(group.total_byte_size for group in groups) < 110_000
        assert found.num_row_groups <= found.num_rows * 1_200 / 100_000 + 3


def repeating(path: Path, rows: int, key: int | None) -> Path:
    """A file of rows of 90 KB, small since all say the same; of one identity if a key is given."""
    chance = random.Random(path.name)
    keys = sorted(chance.randrange(-(2**63), 2**63) if key is None else key for _ in range(rows))
    table = pa.table(
        {
            columns.KEY_HIGH: keys,
            columns.KEY_LOW: keys,
            columns.ROW: list(range(rows)),
            "text": ["x" * 90_000] * rows,
        }
    )
    data_file.write_data_file(path, table.schema, [table])
    return path


@pytest.mark.slow
@pytest.mark.parametrize("key", [None, 7], ids=["many-people", "one-person"])
async def test_the_memory_of_a_merge_does_not_grow_with_its_rows(
    tmp_path: Path, children: Pool, key: int | None
) -> None:
    sources = tuple(repeating(tmp_path / f"{number}.parquet", 1_000, key) for number in range(10))

    task = CompactTask(sources, tmp_path / "new" / "0.parquet")
    file = await children.run(compact, task, limits=Limits(memory_bytes=500_000_000))

    assert file.rows == 10_000  # of 0.9 GB
    assert pq.read_metadata(tmp_path / "new" / file.name).num_row_groups > 100


def test_files_of_different_columns_are_not_merged(tmp_path: Path) -> None:
    sources = (*written(tmp_path, 0, [{"crmId": "1"}]), *written(tmp_path, 1, [{"crmId": "1", "n": 1}]))

    with pytest.raises(pa.ArrowInvalid):
        compact(CompactTask(sources, tmp_path / "new" / "0.parquet"))
