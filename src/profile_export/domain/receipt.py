"""The receipt of an exported batch: what was asked, what was read, what came of it, down to the bytes of every file.

As JSON it lies beside the files for people and programs that know nothing of us, so `docs/reading-the-output.md` says
what its names mean, and `form` changes when one of them does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from profile_export.domain.batch import DataFile
from profile_export.domain.job import Job, JobMetrics, PhaseTime
from profile_export.domain.plan import ExportPlan
from profile_export.domain.policy import MergePolicy
from profile_export.domain.request import ExportRequest
from profile_export.domain.segments import SegmentFilter

RECEIPT_FILE = "receipt.json"
"""Its name in the folder of its batch."""
FORM = 1
"""The version of the JSON's names and meanings."""


@dataclass(frozen=True, slots=True)
class InputBatch:
    """A batch of the snapshot."""

    dataset_id: str
    batch_id: str
    number: int
    ingest_time: datetime
    rows: int


@dataclass(frozen=True, slots=True)
class ReceiptFile:
    """A data file. `path` is relative to the batch's folder, in which the receipt lies, too; `sha256` is in hex.

    `name` is what the file is called within the batch, and so in a download.
    """

    path: str
    name: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class FilledBatch:
    """A batch that an export has just made count: its folder in the lake, and every file that counts."""

    id: str
    folder: str
    commit_time: datetime
    files: Sequence[DataFile]


@dataclass(frozen=True, slots=True)
class Receipt:
    """What proves an exported batch.

    `commit_time` is when it became visible. `request` is as resolved, with all that was left to the server filled in.
    `segment` is None unless each segment has a batch of its own. `input_batches` is the whole snapshot by number, also
    batches of datasets that take no part under the policy, since they were read for who is who (S4). `files` are sorted
    by name. `phases` and `metrics` are the job's, over all its batches.
    """

    form: int
    batch_id: str
    dataset_id: str
    commit_time: datetime
    job_id: int
    attempt: int
    request: ExportRequest
    policy: MergePolicy
    segment: SegmentFilter | None
    input_batches: tuple[InputBatch, ...]
    files: tuple[ReceiptFile, ...]
    phases: tuple[PhaseTime, ...]
    metrics: JobMetrics
    notes: tuple[str, ...]


def receipt_of(job: Job, plan: ExportPlan, phases: Sequence[PhaseTime], filled: FilledBatch) -> Receipt:
    """Make the receipt of one batch of a job that has SUCCEEDED, with the plan that it carried out."""
    segment = None
    if job.segment_batches:
        segment = job.bound.request.segments[job.segment_batches.index(filled.id)]
    read = sorted(plan.batches, key=lambda batch: batch.number)
    return Receipt(
        form=FORM,
        batch_id=filled.id,
        dataset_id=job.bound.request.destination_id,
        commit_time=filled.commit_time,
        job_id=job.id,
        attempt=job.attempt,
        request=job.bound.resolved,
        policy=job.bound.policy,
        segment=segment,
        input_batches=tuple(
            InputBatch(batch.dataset_id, batch.id, batch.number, batch.ingest_time, batch.rows)
            for batch in read
        ),
        files=tuple(
            ReceiptFile(
                file.path.removeprefix(f"{filled.folder}/"), file.name, file.rows, file.bytes, file.sha256
            )
            for file in sorted(filled.files, key=lambda file: file.name)
        ),
        phases=tuple(phases),
        metrics=job.metrics,
        notes=job.notes,
    )
