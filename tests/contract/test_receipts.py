"""Receipts in the store: one for each batch that an export makes count, in the transaction that does so."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import select

from profile_export.domain.catalog.batches import BatchState, DataFile
from profile_export.domain.errors import FailedPreconditionError, NotFoundError
from profile_export.domain.export.plan import ExportCounts, ExportPlan, plan_export
from profile_export.domain.export.receipt import Receipt
from profile_export.domain.export.request import BoundRequest, EventList, ExportRequest, WriteMode
from profile_export.domain.export.selection import SegmentFilter
from profile_export.domain.job import JobError, Phase, Progress
from profile_export.domain.merging.policy import BUILT_IN_POLICY
from profile_export.domain.schemas.types import TEXT, ObjectType
from profile_export.lake.local import LocalLake
from profile_export.runner.worker import ReceiptWriter
from profile_export.store.db.columns import Json
from profile_export.store.db.tables import receipts
from profile_export.store.files.batches import Receipts
from profile_export.store.files.folders import DroppedFolders
from profile_export.store.jobs.attempts import Claim, RangeDone
from profile_export.store.jobs.jobs import NewJob
from tests.contract.test_store import TENANT, UNION, Store, facts
from tests.databases import Place
from tests.pages import page_of

COMMITTING = Progress(Phase.COMMIT, 1, 1, 1)
SEGMENTS = (SegmentFilter("gold"), SegmentFilter("silver"))


class Exports:
    """A store with a source of one batch, whose jobs are carried out without an engine."""

    def __init__(self, data_dir: Path, place: Place) -> None:
        self.store = Store(place)
        self.receipts = Receipts(self.store.database)
        self.lake = LocalLake(data_dir)
        self.writer = ReceiptWriter(self.receipts, self.lake)
        self.source = ""

    async def claimed(
        self, destination: str = "", name: str = "a", **request: Any
    ) -> tuple[Claim, ExportPlan]:
        """Begin a job and pin its plan; its batches are named `a`, `b` and so on, behind the destination's id."""
        destination = destination or await self.store.dataset(UNION)
        asked = ExportRequest(destination, policy_id=BUILT_IN_POLICY.id, **request)
        names = "ab"[: len(asked.segments)] if asked.segment_per_batch else name
        folders = {f"{destination}-{name}": f"{destination}/{name}" for name in names}
        await self.store.jobs.create(TENANT, NewJob(BoundRequest(asked, BUILT_IN_POLICY), "", folders))
        claim = await self.store.attempts.claim("worker")
        assert claim
        snapshot = await self.store.snapshots.take(TENANT)
        plan = plan_export(claim.job.bound, snapshot, claim.job.batch_id, claim.job.segment_batches)
        await self.store.attempts.begin_phase(claim.fence, COMMITTING, plan)
        files = {batch: [DataFile("f", f"{folder}/1/f", 2, 9, "ab")] for batch, folder in folders.items()}
        done = RangeDone(0, files, ExportCounts(profiles_read=3, profiles_exported=2, events_only=1), 5)
        await self.store.attempts.record_range(claim.fence, done, COMMITTING)
        return claim, plan

    async def exported(self, destination: str = "", name: str = "a", **request: Any) -> list[str]:
        """Carry a job out; return its batches."""
        claim, plan = await self.claimed(destination, name, **request)
        await self.store.attempts.commit(claim.fence)
        return list(plan.batch_ids)

    async def rows(self) -> int:
        async with self.store.database.read() as connection:
            return len((await connection.execute(select(receipts.c.batch_key))).all())

    def on_disk(self) -> list[Path]:
        return sorted(self.lake.root.rglob("receipt.json*"))


@pytest_asyncio.fixture
async def exports(tmp_path: Path, place: Place) -> AsyncIterator[Exports]:
    opened = Exports(tmp_path, place)
    await opened.store.database.open()
    opened.lake.open()
    opened.source = await opened.store.dataset()
    await opened.store.upload(opened.source, "in", facts(ObjectType({"id": TEXT}), ("CRM",)))
    yield opened
    await opened.store.database.close()


async def test_a_commit_writes_one_receipt_of_what_the_job_became(exports: Exports) -> None:
    [batch_id] = await exports.exported()

    receipt = (await exports.receipts.get(TENANT, batch_id)).receipt

    batch = await exports.store.batches.get_batch(TENANT, batch_id)
    view = await exports.store.jobs.get(TENANT, receipt.job_id)
    [read] = receipt.input_batches
    assert (receipt.dataset_id, receipt.commit_time) == (batch.dataset_id, batch.ingest_time)
    assert (read.dataset_id, read.batch_id, read.number, read.rows) == (exports.source, "in", 1, 3)
    assert [(file.path, file.rows, file.bytes, file.sha256) for file in receipt.files] == [
        ("1/f", 2, 9, "ab")
    ]
    assert (receipt.metrics, receipt.phases) == (view.job.metrics, view.phases)
    assert (receipt.metrics.counts.events_only, receipt.notes) == (1, view.job.notes)
    assert await exports.rows() == 1


async def test_every_segment_that_has_a_batch_has_a_receipt(exports: Exports) -> None:
    batches = await exports.exported(segments=SEGMENTS, segment_per_batch=True)

    found = [(await exports.receipts.get(TENANT, batch_id)).receipt for batch_id in batches]

    assert [receipt.segment for receipt in found] == list(SEGMENTS)
    assert [receipt.batch_id for receipt in found] == batches
    assert [len(receipt.files) for receipt in found] == [1, 1]
    assert all("'gold'" in receipt.notes[0] and "'silver'" in receipt.notes[1] for receipt in found)


async def test_an_export_that_replaces_hides_what_was_there_at_the_moment_when_it_counts(
    exports: Exports,
) -> None:
    # given two batches of a destination, and one of another
    store, batches = exports.store, exports.store.batches
    out = await store.dataset(UNION)
    old = [*await exports.exported(out, "a"), *await exports.exported(out, "b")]
    [elsewhere] = await exports.exported()
    page = page_of(10)

    async def counting() -> list[str]:
        return [batch.id for batch in (await batches.list_batches(TENANT, out, page)).items]

    # when a job that replaces runs, is cancelled, and another one and one that appends succeed
    given_up, _ = await exports.claimed(out, "c", mode=WriteMode.REPLACE)
    await store.jobs.cancel(TENANT, given_up.job.id, "me", "")
    await store.attempts.let_go(given_up.fence)
    claim, plan = await exports.claimed(out, "d", mode=WriteMode.REPLACE)
    assert await counting() == old
    await store.attempts.commit(claim.fence)
    assert await counting() == [plan.batch_id]
    [added] = await exports.exported(out, "e")

    # then the old batches are hidden for good, and batches, job and receipt say what has replaced what
    assert await counting() == [plan.batch_id, added]
    for batch_id in old:
        batch = await batches.get_batch(TENANT, batch_id)
        assert (batch.state, batch.replaced_by) == (BatchState.REPLACED, claim.job.id)
        assert batch.state_reason == f"Replaced by the export job {claim.job.id}."
        with pytest.raises(FailedPreconditionError, match="REPLACED"):
            await exports.receipts.get(TENANT, batch_id)
        with pytest.raises(FailedPreconditionError, match="REPLACED"):
            await batches.revert(TENANT, batch_id, "")
    receipt = (await exports.receipts.get(TENANT, plan.batch_id)).receipt
    note = f"It has replaced 2 batches, the newest of them '{old[1]}'."
    assert (receipt.replaced_batches, receipt.notes) == (tuple(old), (note,))
    assert (await store.jobs.get(TENANT, claim.job.id)).job.notes == (note,)
    assert (await batches.get_batch(TENANT, elsewhere)).state is BatchState.SUCCEEDED
    assert (await exports.receipts.get(TENANT, added)).receipt.replaced_batches == ()
    # and their files may go once whoever downloads them has had his time
    dropped = DroppedFolders(store.database)
    assert {f"{out}/a", f"{out}/b"} <= set(await dropped.due(timedelta()))
    assert not {f"{out}/a", f"{out}/b"} & set(await dropped.due(timedelta(hours=1)))
    # and a revert of what has replaced them brings none of them back
    await batches.revert(TENANT, plan.batch_id, "")
    assert await counting() == [added]


async def test_of_two_exports_that_replace_at_once_the_later_commit_stays_whole(exports: Exports) -> None:
    out = await exports.store.dataset(UNION)
    [old] = await exports.exported(out, "o")
    several: dict[str, Any] = {"mode": WriteMode.REPLACE, "segments": SEGMENTS, "segment_per_batch": True}
    early, of_segments = await exports.claimed(out, **several)
    late, plan = await exports.claimed(out, "l", mode=WriteMode.REPLACE)

    await asyncio.gather(*(exports.store.attempts.commit(claim.fence) for claim in (early, late)))

    ends = [
        await exports.store.batches.get_batch(TENANT, id_) for id_ in (*of_segments.batch_ids, plan.batch_id)
    ]
    *first, second = ends
    won_late = second.state is BatchState.SUCCEEDED
    assert {batch.state for batch in first} == {BatchState.REPLACED if won_late else BatchState.SUCCEEDED}
    assert (await exports.store.batches.get_batch(TENANT, old)).replaced_by in {early.job.id, late.job.id}
    replaced = {batch.replaced_by for batch in first}
    assert (replaced, second.replaced_by) == (({late.job.id}, None) if won_late else ({None}, early.job.id))


@pytest.mark.parametrize("end", ["cancelled", "failed", "retried", "still running"])
async def test_a_job_that_has_not_succeeded_has_no_receipt(exports: Exports, end: str) -> None:
    claim, plan = await exports.claimed()

    match end:
        case "cancelled":
            await exports.store.jobs.cancel(TENANT, claim.job.id, "me", "")
            with pytest.raises(FailedPreconditionError):
                await exports.store.attempts.commit(claim.fence)
            await exports.store.attempts.let_go(claim.fence)
        case "failed" | "retried":
            error = JobError("X", "x", "engine", retryable=end == "retried", attempt=1)
            await exports.store.attempts.end_with_error(claim.fence, error)

    with pytest.raises(NotFoundError) as refused:
        await exports.receipts.get(TENANT, plan.batch_id)
    assert refused.value.reason == "RECEIPT_NOT_FOUND"
    assert await exports.rows() == 0


async def test_an_upload_has_no_receipt_and_one_that_was_taken_back_none_any_more(exports: Exports) -> None:
    [batch_id] = await exports.exported()
    await exports.store.batches.revert(TENANT, batch_id, "")

    with pytest.raises(NotFoundError, match="no receipt"):
        await exports.receipts.get(TENANT, "in")
    with pytest.raises(FailedPreconditionError, match="REVERTED"):
        await exports.receipts.get(TENANT, batch_id)


async def test_receipts_are_put_on_the_disk_byte_for_byte_and_once(exports: Exports) -> None:
    # given two jobs whose process has died before it wrote anything
    requests: list[dict[str, Any]] = [{}, {"segments": SEGMENTS, "segment_per_batch": True}]
    stored = [
        await exports.receipts.get(TENANT, batch_id)
        for request in requests
        for batch_id in await exports.exported(**request)
    ]

    # when all that is missing is written, once more after the files were removed
    await exports.writer.write_all()
    written = {path: path.read_bytes() for path in exports.on_disk()}
    for path in written:
        path.unlink()
    await exports.writer.write_all()

    # then each lay where it belongs, and nothing was written twice
    assert written == {exports.lake.root / one.path: one.document for one in stored}
    assert exports.on_disk() == []


async def test_nothing_is_written_for_a_batch_that_was_taken_back_or_whose_dataset_is_gone(
    exports: Exports,
) -> None:
    [reverted], [deleted] = await exports.exported(), await exports.exported()
    await exports.store.batches.revert(TENANT, reverted, "")
    dataset_id = (await exports.store.batches.get_batch(TENANT, deleted)).dataset_id
    await exports.store.catalog.delete_dataset(TENANT, dataset_id)

    await exports.writer.write_all()

    assert exports.on_disk() == []


async def test_what_the_lake_refuses_holds_up_nothing_else_and_is_tried_again(exports: Exports) -> None:
    # given two receipts, and something in the way of the first
    [first], [second] = await exports.exported(), await exports.exported()
    paths = [exports.lake.root / (await exports.receipts.get(TENANT, one)).path for one in (first, second)]
    (paths[0] / "in the way").mkdir(parents=True)

    # when they are written, and again when the way is free
    await exports.writer.write_all()
    there = paths[1].is_file()
    (paths[0] / "in the way").rmdir()
    paths[0].rmdir()
    await exports.writer.write_all()

    # then the second did not wait, and the first came later
    assert there
    assert [path.is_file() for path in paths] == [True, True]


async def test_the_json_says_what_the_page_about_the_output_says(exports: Exports) -> None:
    [batch_id] = await exports.exported(event_list=EventList())

    stored = await exports.receipts.get(TENANT, batch_id)

    told = json.loads(stored.document)
    assert stored.document.startswith(b'{\n  "form": 1,\n  "batch_id": ')
    assert list(told) == [
        "form", "batch_id", "dataset_id", "commit_time", "job_id", "attempt", "request", "policy", "segment",
        "input_batches", "files", "phases", "metrics", "notes", "replaced_batches",
    ]  # fmt: skip
    assert list(told["input_batches"][0]) == ["dataset_id", "batch_id", "number", "ingest_time", "rows"]
    assert told["files"] == [{"path": "1/f", "name": "f", "rows": 2, "bytes": 9, "sha256": "ab"}]
    assert list(told["phases"][0]) == ["attempt", "phase", "start_time", "end_time"]
    assert told["commit_time"].endswith("Z")
    assert (told["policy"]["attribute_merge"], told["policy"]["graph"]) == ("timestampOrdered", "none")
    assert told["metrics"]["counts"]["events_only"] == 1
    page = (Path(__file__).parents[2] / "docs" / "reading-the-output.md").read_text()
    assert all(f"`{name}`" in page for name in told)


async def test_a_receipt_of_a_form_that_lacked_names_is_still_read(exports: Exports) -> None:
    [batch_id] = await exports.exported()
    stored = await exports.receipts.get(TENANT, batch_id)
    older = json.loads(stored.document)
    del older["policy"]["order"]
    del older["request"]["segments"]

    found: Receipt = Json(Receipt).adapter.validate_json(json.dumps(older))
    assert found == stored.receipt
