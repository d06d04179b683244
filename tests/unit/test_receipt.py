from __future__ import annotations

from dataclasses import replace
from typing import Any

from profile_export.domain.catalog.batches import DataFile
from profile_export.domain.export.plan import ExportCounts
from profile_export.domain.export.receipt import (
    FilledBatch,
    InputBatch,
    ReceiptFile,
    receipt_of,
    replacement_note,
)
from profile_export.domain.export.request import BoundRequest, ExportRequest
from profile_export.domain.export.selection import SegmentFilter
from profile_export.domain.job import Job, JobMetrics, JobState, Phase, PhaseTime
from profile_export.domain.merging.policy import BUILT_IN_POLICY
from profile_export.domain.schemas.types import TEXT
from tests.builders import at, events, plan_of, records, row

LISTED = records("listed", {"name": TEXT}, row("listed", "CRM:1", batch="b2"))
UNLISTED = records("unlisted", {"name": TEXT}, row("unlisted", "CRM:1", batch="b1"))
VISITS = events("visits", {"page": TEXT}, row("visits", "CRM:1", batch="b3"))
PHASES = [PhaseTime(0, Phase.QUEUE, at(10), at(11)), PhaseTime(1, Phase.PLAN, at(11), at(12))]
METRICS = JobMetrics(ExportCounts(profiles_read=3, profiles_exported=1, events_only=2), rows_written=1)
SEGMENTS = (SegmentFilter("gold"), SegmentFilter("silver", "crm"))


def succeeded(request: ExportRequest, batch_id: str = "export", **values: Any) -> Job:
    return Job(
        id=7,
        bound=BoundRequest(request, BUILT_IN_POLICY),
        request_id="",
        batch_id=batch_id,
        state=JobState.SUCCEEDED,
        revision=3,
        attempt=2,
        create_time=at(10),
        update_time=at(12),
        end_time=at(12),
        metrics=METRICS,
        **values,
    )


def file_of(folder: str, attempt: int, name: str) -> DataFile:
    return DataFile(name, f"{folder}/{attempt}/{name}", 1, 10, "ab")


def filled(batch_id: str, *files: DataFile) -> FilledBatch:
    return FilledBatch(batch_id, f"people/{batch_id}", at(12), files)


def test_a_receipt_says_what_was_asked_of_whom_and_what_came_of_it() -> None:
    job = succeeded(ExportRequest("people"), notes=("worth knowing",))

    receipt = receipt_of(job, plan_of([LISTED]), PHASES, filled("export"))

    assert (receipt.batch_id, receipt.dataset_id, receipt.commit_time) == ("export", "people", at(12))
    assert (receipt.form, receipt.job_id, receipt.attempt, receipt.segment) == (1, 7, 2, None)
    assert (receipt.policy, receipt.request) == (BUILT_IN_POLICY, job.bound.resolved)
    assert (receipt.phases, receipt.metrics) == (tuple(PHASES), METRICS)
    assert receipt.notes == ("worth knowing",)


def test_every_batch_of_the_snapshot_is_listed_by_number_also_of_what_takes_no_part() -> None:
    plan = plan_of([LISTED, UNLISTED, VISITS], order=["listed"])
    plan = replace(plan, batches=plan.batches[::-1])
    assert [source.takes_part for source in plan.sources] == [True, False, True]

    receipt = receipt_of(succeeded(ExportRequest("people")), plan, PHASES, filled("export"))

    assert receipt.input_batches == (
        InputBatch("unlisted", "b1", 1, at(1), 0),
        InputBatch("listed", "b2", 2, at(2), 0),
        InputBatch("visits", "b3", 3, at(3), 0),
    )


def test_files_are_sorted_by_name_and_have_paths_from_where_the_receipt_lies() -> None:
    # given files of two attempts, of which each name is there once
    late, early = file_of("people/export", 1, "1-0.parquet"), file_of("people/export", 2, "0-0.parquet")

    receipt = receipt_of(
        succeeded(ExportRequest("people")), plan_of([LISTED]), PHASES, filled("export", late, early)
    )

    assert receipt.files == (
        ReceiptFile("2/0-0.parquet", "0-0.parquet", 1, 10, "ab"),
        ReceiptFile("1/1-0.parquet", "1-0.parquet", 1, 10, "ab"),
    )


def test_the_batch_of_a_segment_names_its_segment() -> None:
    request = ExportRequest("people", policy_id="p", segments=SEGMENTS, segment_per_batch=True)
    job = succeeded(request, batch_id="", segment_batches=("of gold", "of silver"))
    plan = plan_of([LISTED])

    receipts = [receipt_of(job, plan, PHASES, filled(batch_id)) for batch_id in job.segment_batches]

    assert [receipt.segment for receipt in receipts] == list(SEGMENTS)


def test_a_batch_of_several_segments_has_none_of_its_own() -> None:
    job = succeeded(ExportRequest("people", policy_id="p", segments=SEGMENTS))

    receipt = receipt_of(job, plan_of([LISTED]), PHASES, filled("export"))

    assert receipt.segment is None
    assert receipt.request.segments == SEGMENTS


def test_a_note_says_what_an_export_has_replaced() -> None:
    assert replacement_note([]) == ()
    assert replacement_note(["a"]) == ("It has replaced the batch 'a'.",)
    assert replacement_note(["a", "b", "c"]) == ("It has replaced 3 batches, the newest of them 'c'.",)
