"""The receipt of an exported batch, down to the bytes of every file, and whether files are what it says.

As JSON it lies beside the files for people and programs that know nothing of us, so `docs/reading-the-output.md` says
what its names mean, and `form` changes when one of them does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from profile_export.domain.catalog.batches import DataFile
from profile_export.domain.export.plan import ExportPlan
from profile_export.domain.export.request import ExportRequest
from profile_export.domain.export.selection import SegmentFilter
from profile_export.domain.job import Job, JobMetrics, PhaseTime
from profile_export.domain.merging.policy import MergePolicy

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
    by name. `phases` and `metrics` are the job's, over all its batches. `replaced_batches` are those that it replaced,
    by number.
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
    replaced_batches: tuple[str, ...] = ()


def receipt_of(
    job: Job,
    plan: ExportPlan,
    phases: Sequence[PhaseTime],
    filled: FilledBatch,
    replaced: Sequence[str] = (),
) -> Receipt:
    """Make the receipt of one batch of a job that has SUCCEEDED, with the plan that it carried out.

    `replaced` are the ids of the batches that the job has replaced, by number.
    """
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
        replaced_batches=tuple(replaced),
    )


def replacement_note(replaced: Sequence[str]) -> tuple[str, ...]:
    """Say what a job has replaced, in a sentence for its notes; none if that is nothing.

    `replaced` are the ids of the batches, by number.
    """
    if not replaced:
        return ()
    several = f"{len(replaced)} batches, the newest of them" if len(replaced) > 1 else "the batch"
    return (f"It has replaced {several} '{replaced[-1]}'.",)


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A data file as it lies there; `rows` is None if it cannot be read as Parquet."""

    bytes: int
    sha256: str
    rows: int | None


@dataclass(frozen=True, slots=True)
class Verification:
    """What was checked of a batch, and each finding as one line; none means that all is as the receipt says."""

    batch_id: str
    files: int
    rows: int
    bytes: int
    findings: tuple[str, ...]


def differences(listed: ReceiptFile, found: FoundFile | None) -> Iterator[str]:
    """Yield what is not as listed, a line each. The rows of a file with another hash prove nothing and are not told."""
    if found is None:
        yield f"{listed.path}: is missing."
        return
    if found.bytes != listed.bytes:
        yield f"{listed.path}: has {found.bytes} bytes, the receipt says {listed.bytes}."
    if found.sha256 != listed.sha256:
        yield f"{listed.path}: has the SHA-256 {found.sha256}, the receipt says {listed.sha256}."
    elif found.rows is None:
        yield f"{listed.path}: cannot be read as Parquet."
    elif found.rows != listed.rows:
        yield f"{listed.path}: has {found.rows} rows, the receipt says {listed.rows}."


@dataclass(frozen=True, slots=True)
class StoredReceipt:
    """A receipt, its JSON, and the folder of its batch, relative to the lake's root."""

    receipt: Receipt
    document: bytes
    folder: str

    @property
    def path(self) -> str:
        """Where the JSON lies, relative to the lake's root."""
        return f"{self.folder}/{RECEIPT_FILE}"
