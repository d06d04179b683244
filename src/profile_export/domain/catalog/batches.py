"""Batches: the uploads they are made of, what becomes of them, and their data files.

At the end stand the system columns of a data file, the choice of small files to merge, and what a mirror holds.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from profile_export.domain.errors import AlreadyExistsError, FailedPreconditionError, InvalidArgumentError
from profile_export.domain.lists import ListFields, instant, word
from profile_export.domain.merging.identity import fold_namespace
from profile_export.domain.schemas.types import FieldPath, ObjectType

_BATCH_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_FILE_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
MOST_ERRORS = 100
"""How many errors a batch shows; `ListRejectedRows` has all."""
_LONGEST_NEW_NAME = 1_024
FILE_LIST = ListFields({"name": str}, ("name",))
REJECTED_LIST = ListFields({"file_name": str, "reason": str, "path": str}, ("file_name",))
MOST_FILES = 1_000
"""How many files one batch has at most."""


class BatchState(StrEnum):
    """Where a batch stands; the comment says who moves it next."""

    LOADING = "loading"
    """The uploader, its export job, or a chore where the uploader has gone for good."""
    SUCCEEDED = "succeeded"
    """Whoever reverts it, an export that replaces it, or retention; perhaps nobody."""
    FAILED = "failed"
    """Whoever uploads it again. That of a job: nobody."""
    ABORTED = "aborted"
    """Nobody: final."""
    REVERTED = "reverted"
    """Nobody: final. Nothing of it is visible any more."""
    EXPIRED = "expired"
    """Nobody: final. Nothing of it is visible any more."""
    REPLACED = "replaced"
    """Nobody: final. Nothing of it is visible any more."""


TAKEN_BACK = (BatchState.REVERTED, BatchState.EXPIRED, BatchState.REPLACED)
"""The states of a batch that counted, and does no longer."""


BATCH_LIST = ListFields(
    {
        "state": word({state.name: state for state in BatchState}, "BATCH_STATE_"),
        "create_time": instant,
        "ingest_time": instant,
    },
    ("create_time", "ingest_time"),
)


@dataclass(frozen=True, slots=True)
class RowError:
    """Why a row, or with `row` None a whole file, was refused. Rows count from 1; `path` is empty if no field is meant.

    `code` is a word as in the contract's RejectedRow.reason, or FILE_INVALID; `message` a sentence for people.
    """

    row: int | None
    code: str
    message: str
    path: str = ""


@dataclass(frozen=True, slots=True)
class RejectedRow:
    """A row that was refused and kept: its number in the file from 1, why, and the row as sent, cut after 100 KB."""

    row: int
    code: str
    message: str
    path: str
    text: str


class UploadState(StrEnum):
    """Where one uploaded file stands; the comment says who moves it next."""

    OPEN = "open"
    """The uploader: bytes are arriving, or are waited for."""
    COMPLETE = "complete"
    """Whoever completes the batch: everything has arrived and was accepted."""
    REFUSED = "refused"
    """Whoever uploads the file again. The batch does without it; its errors stay to be read."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How a caller wants a file to be read.

    A text that is one of `null_values` is read as absent. `renames` has pairs of a name that the file gives to a
    field, and the name that it gets.
    """

    null_values: tuple[str, ...] = ()
    renames: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        for sent, name in self.renames:
            if not sent or not 0 < len(name) <= _LONGEST_NEW_NAME:
                what = f"must have names of 1 to {_LONGEST_NEW_NAME:,} characters."
                raise InvalidArgumentError.of_field("start.renames", what)
        given = Counter(name for _, name in self.renames)
        if twice := sorted(name for name, times in given.items() if times > 1):
            raise InvalidArgumentError.of_field("start.renames", f"give the name '{twice[0]}' twice.")


@dataclass(frozen=True, slots=True)
class Upload:
    """One uploaded file of a batch.

    `staged_as` names the place of its bytes as sent, `staged_bytes` how many may be kept there. `byte_count` and
    `sha256` are those of these bytes, None unless it is COMPLETE. `folder` is where ingestion has put what it made of
    them, empty before that. `null_count` is how many of its texts were read as absent, `notes` say what else was left
    out of it, in sentences.
    """

    file_name: str
    format: str
    max_bad_records: int
    state: UploadState
    staged_as: str
    staged_bytes: int = 0
    byte_count: int | None = None
    sha256: str | None = None
    folder: str = ""
    rejected_rows: int = 0
    errors: tuple[RowError, ...] = ()
    reading: Reading = Reading()
    null_count: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Batch:
    """An atomic set of files added to a dataset, visible whole or not at all.

    `number`, `ingest_time` and the counts are None or 0 until it has succeeded. `several_files` says that CreateBatch
    made it: it counts when it is completed, and not with its first file. `job_id` is None for uploads, which are sorted
    by name. `expire_time` is when retention will expire it or, once EXPIRED, did; None: never. `replaced_by` is the job
    that has replaced it, None unless it is REPLACED.
    """

    id: str
    dataset_id: str
    state: BatchState
    create_time: datetime
    end_time: datetime | None = None
    number: int | None = None
    ingest_time: datetime | None = None
    rows: int = 0
    bytes: int = 0
    file_count: int = 0
    job_id: int | None = None
    several_files: bool = False
    state_reason: str = ""
    uploads: tuple[Upload, ...] = ()
    expire_time: datetime | None = None
    replaced_by: int | None = None

    @property
    def rejected_rows(self) -> int:
        """Rows that were refused and are kept."""
        return sum(upload.rejected_rows for upload in self.uploads)

    @property
    def null_count(self) -> int:
        """Texts that were read as absent."""
        return sum(upload.null_count for upload in self.uploads)


def attempt_folder(batch_folder: str, attempt: int) -> str:
    """Return where an attempt at an export writes: apart from every other, so that none meets another's files."""
    return f"{batch_folder}/{attempt}"


@dataclass(frozen=True, slots=True)
class DataFile:
    """One Parquet file. `path` is relative to the lake's root; `sha256` is in hex."""

    name: str
    path: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class UploadStart:
    """What a caller says of a file before its first byte. `offset` is how many bytes were sent before.

    `max_bad_records` is how many rows may be rejected before the whole file is, `reading` how it is to be read.
    """

    dataset_id: str
    batch_id: str
    file_name: str
    format: str
    offset: int = 0
    max_bad_records: int = 0
    reading: Reading = Reading()

    def __post_init__(self) -> None:
        check_batch_id(self.batch_id, "start.batch_id")
        if not _FILE_NAME.fullmatch(self.file_name):
            raise InvalidArgumentError.of_field("start.file_name", "must match [A-Za-z0-9_.-]{1,128}.")
        for name, value in (("offset", self.offset), ("max_bad_records", self.max_bad_records)):
            if value < 0:
                raise InvalidArgumentError.of_field(f"start.{name}", "must not be negative.")


def check_batch_id(batch_id: str, field: str) -> None:
    """Raise InvalidArgumentError if a batch id does not match `[A-Za-z0-9_-]{1,64}`."""
    if not _BATCH_ID.fullmatch(batch_id):
        raise InvalidArgumentError.of_field(field, "must match [A-Za-z0-9_-]{1,64}.")


def check_takes_file(batch: Batch, dataset_id: str, file_name: str) -> None:
    """Refuse a file that a batch cannot take. A FAILED batch takes one anew; that of a finished upload only compares.

    Raises:
        AlreadyExistsError: The batch belongs to another dataset or a job, or is not open to a file of that name.
        FailedPreconditionError: It was given up or taken back.
    """
    if batch.dataset_id != dataset_id or batch.job_id is not None:
        owner = f"dataset '{batch.dataset_id}'" if batch.job_id is None else f"export job {batch.job_id}"
        raise _taken(batch, f"belongs to {owner}")
    match batch.state:
        case BatchState.FAILED:
            return
        case BatchState.LOADING | BatchState.SUCCEEDED:
            closed = batch.state is BatchState.SUCCEEDED or not batch.several_files
            if closed and all(upload.file_name != file_name for upload in batch.uploads):
                names = ", ".join(f"'{upload.file_name}'" for upload in batch.uploads)
                raise _taken(batch, f"is {batch.state.name} with {names} alone")
        case _:
            raise FailedPreconditionError(
                "BATCH_ABORTED",
                f"The batch '{batch.id}' is {batch.state.name}; upload under another batch_id.",
                metadata={"batch_id": batch.id, "state": batch.state.name},
            )


def check_file_count(batch_id: str, count: int) -> None:
    """Raise InvalidArgumentError if a batch would have more files than it can."""
    if count > MOST_FILES:
        raise InvalidArgumentError.of_field(
            "start.file_name",
            f"the batch '{batch_id}' has {MOST_FILES:,} files, and none can have more; send the rest in another batch.",
            "TOO_MANY_FILES",
            count=str(count),
            limit=str(MOST_FILES),
        )


def _taken(batch: Batch, why: str) -> AlreadyExistsError:
    return AlreadyExistsError(
        "BATCH_EXISTS",
        f"The batch '{batch.id}' {why}; choose another batch_id.",
        metadata={"batch_id": batch.id, "dataset_id": batch.dataset_id, "state": batch.state.name},
    )


def check_completable(batch: Batch) -> None:
    """Refuse to complete a batch that is not ready. A refused file does not count, an unfinished one does.

    Raises:
        FailedPreconditionError: It is not LOADING or a job's, a file is not complete, or there is none.
    """
    if batch.state is not BatchState.LOADING or batch.job_id is not None:
        raise _not_loading(batch)
    unfinished = [upload.file_name for upload in batch.uploads if upload.state is UploadState.OPEN]
    if unfinished or all(upload.state is UploadState.REFUSED for upload in batch.uploads):
        what = f"the file '{unfinished[0]}' has not arrived in full" if unfinished else "it has no file"
        raise FailedPreconditionError(
            "UPLOAD_INCOMPLETE",
            f"The batch '{batch.id}' cannot be completed: {what}.",
            metadata={"batch_id": batch.id, "file_name": unfinished[0] if unfinished else ""},
        )


def check_abortable(batch: Batch) -> None:
    """Raise FailedPreconditionError if a batch cannot be given up, because it is a job's or has ended."""
    if batch.job_id is not None:
        raise FailedPreconditionError(
            "BATCH_OF_JOB",
            f"The export job {batch.job_id} writes the batch '{batch.id}'; cancel the job.",
            metadata={"batch_id": batch.id, "job_id": str(batch.job_id)},
        )
    if batch.state is not BatchState.LOADING:
        raise _not_loading(batch)


def check_revertible(batch: Batch) -> None:
    """Raise FailedPreconditionError if a batch cannot be taken back, because it has not SUCCEEDED."""
    if batch.state is not BatchState.SUCCEEDED:
        raise not_succeeded(batch.id, batch.state, "can be reverted")


def not_succeeded(
    batch_id: str, state: BatchState, what: str = "has files that count"
) -> FailedPreconditionError:
    """Return the refusal of what needs a SUCCEEDED batch; `what` says for what."""
    newer = " A later export has taken its place: list the batches of its dataset again."
    way_out = newer if state is BatchState.REPLACED else ""
    return FailedPreconditionError(
        "BATCH_NOT_SUCCEEDED",
        f"The batch '{batch_id}' is {state.name}; only a SUCCEEDED batch {what}.{way_out}",
        metadata={"batch_id": batch_id, "state": state.name},
    )


def _not_loading(batch: Batch) -> FailedPreconditionError:
    return FailedPreconditionError(
        "BATCH_NOT_LOADING",
        f"The batch '{batch.id}' is {batch.state.name}, not LOADING.",
        metadata={"batch_id": batch.id, "state": batch.state.name},
    )


# --- What ingestion made of a file ---


@dataclass(frozen=True, slots=True)
class NamespaceUse:
    """How a file spells its namespaces (S2): of each one the spelling of its first place, and all spellings.

    The former are in the order of these places.
    """

    first_spellings: tuple[str, ...] = ()
    all_spellings: frozenset[str] = frozenset()


def used_together(uses: Iterable[NamespaceUse]) -> NamespaceUse:
    """Return how several files, in their order, spell their namespaces together."""
    first: dict[str, str] = {}
    spellings: set[str] = set()
    for use in uses:
        for spelling in use.first_spellings:
            first.setdefault(fold_namespace(spelling), spelling)
        spellings |= use.all_spellings
    return NamespaceUse(tuple(first.values()), frozenset(spellings))


@dataclass(frozen=True, slots=True)
class IngestedFile:
    """What an uploaded file turned out to hold.

    `folder` is where its data files and rejected rows are, `first_row` the number of its first row within the batch.
    `fields` are those its files were written with. `untyped` are the paths of arrays that were left out because
    nobody knew the type of their items (S13). `sha256` and `byte_count` are those of the bytes as sent. `errors` are
    the first of the rejected rows. `null_count` and `notes` are as those of `Upload`.
    """

    folder: str
    files: tuple[DataFile, ...]
    first_row: int
    rows: int
    fields: ObjectType
    identity_namespaces: NamespaceUse
    segment_namespaces: NamespaceUse
    untyped: tuple[FieldPath, ...]
    sha256: str
    byte_count: int
    rejected_rows: int = 0
    errors: tuple[RowError, ...] = ()
    null_count: int = 0
    notes: tuple[str, ...] = ()


# --- System columns of a data file ---
# Batch number and ingest time are not among them: they are known only at the commit, stand on the batch's row and are
# bound to a plan.

BATCH_ID = "_batch_id"
"""text: the batch that the row belongs to; also in exported files."""
PROFILE_ID = "_profile_id"
"""text, in exported files only: who the row is about (`profile_id`)."""
ROW = "_row"
"""64-bit integer: the row's number in its batch, from 0."""
NAMESPACE = "_namespace"
"""text: namespace of the primary identity, spelled as sent."""
IDENTITY = "_identity"
"""text: id of the primary identity."""
AUTHENTICATED_STATE = "_authenticated_state"
"""text or null: the primary identity's state, null where it is absent or `ambiguous` (S6)."""
KEY_HIGH = "_key_high"
KEY_LOW = "_key_low"
"""64-bit integers: the halves of the primary identity's key. A file is sorted by (high, low, row)."""
LINKS = "_links"
"""list or null: the record's other identities, each {namespace, id, authenticated_state, key_high, key_low}; null
where there is none."""

SYSTEM_COLUMNS = (BATCH_ID, ROW, NAMESPACE, IDENTITY, AUTHENTICATED_STATE, KEY_HIGH, KEY_LOW, LINKS)
"""Those of a file that was ingested."""
OWN_COLUMNS = (*SYSTEM_COLUMNS, PROFILE_ID)
"""Those of any file, none of which a user's field is called."""

ABOUT_FILE = "profile-export."
"""What the names begin with under which exported files and Iceberg tables say whose they are."""

# --- Compaction ---
# Runs of batches lie in tiers by their rows: 1 to 9, 10 to 99, and so on. Ten of a tier are merged
# into one of a higher tier or into a full one, so a row is written at most once per tier, and at most nine runs of each
# tier remain.

MERGED_FROM = 10
"""How many runs of a tier must wait before they are merged."""
MOST_MERGED = 100
"""How many runs are merged at once where more are waiting."""
MOST_MERGED_ROWS = 500_000
MOST_MERGED_BYTES = 64 * 2**20
"""How much one merged file may hold: half of what another may, since merging takes memory and time in one piece."""
FULL_ROWS = MOST_MERGED_ROWS // 2
FULL_BYTES = MOST_MERGED_BYTES // 2
"""From this size on a run stays as it is, so that any two that are merged fit into one file."""


@dataclass(frozen=True, slots=True)
class BatchRun:
    """Rows that lie together: the files of one batch, or a compacted file.

    `key` is that of the batch or of the compacted file, within its kind; `paths` are relative to the lake's root.
    """

    key: int
    is_compacted: bool
    rows: int
    bytes: int
    paths: tuple[str, ...]

    @property
    def is_full(self) -> bool:
        """Whether it is large enough to be left alone."""
        return self.rows >= FULL_ROWS or self.bytes >= FULL_BYTES


def next_merge(runs: Sequence[BatchRun]) -> tuple[BatchRun, ...]:
    """Choose two or more runs to merge into one file next; none if everything lies well as it is.

    `runs` were written with the same fields, none is without rows, and they stand in the order to merge them in.
    """
    tiers: dict[int, list[BatchRun]] = defaultdict(list)
    for run in runs:
        if not run.is_full:
            tiers[len(str(run.rows))].append(run)
    waiting = [tier for tier, found in tiers.items() if len(found) >= MERGED_FROM]
    rows = size = 0
    chosen: list[BatchRun] = []
    # As many of the first as one file can hold: any two fit, since none is full.
    for run in tiers[min(waiting)][:MOST_MERGED] if waiting else ():
        rows, size = rows + run.rows, size + run.bytes
        if rows > MOST_MERGED_ROWS or size > MOST_MERGED_BYTES:
            break
        chosen.append(run)
    return tuple(chosen)


# --- The mirror ---

FORMER_NAMESPACE = "profile_export"
"""Where the tables of all tenants were; one that is found there moves to its tenant's."""
_PLAIN = re.compile(r"[A-Za-z0-9]")


@dataclass(frozen=True, slots=True)
class MirroredDataset:
    """Whose table it is: a dataset, its name, and its tenant."""

    id: str
    name: str
    org: str
    sandbox: str

    @property
    def namespace(self) -> str:
        """The tenant's namespace in the catalog, of letters, digits and `_`; no other tenant has it."""
        # Whatever else stands in the names is written as `_` and its hexadecimal digits, so `__` is only between them.
        return f"{_plain(self.org)}__{_plain(self.sandbox)}"

    @property
    def table(self) -> str:
        """The name of its table within the namespace."""
        return f"d_{self.id}"


def _plain(name: str) -> str:
    return "".join(one if _PLAIN.match(one) else f"_{ord(one):02x}" for one in name)


@dataclass(frozen=True, slots=True)
class MirroredBatch:
    """A batch for the table: the paths of its files, relative to the lake's root, in the order in which they count.

    `job_id` is that of the export that wrote it, None for an upload.
    """

    batch_id: str
    files: tuple[str, ...]
    job_id: int | None = None


@dataclass(frozen=True, slots=True)
class TableState:
    """Where a table stands.

    `snapshot_id` is None while it has never held a file. `sequence_number` grows with each snapshot;
    `oldest_sequence_number` is that of the oldest of the `snapshots` that are kept. Both are 0 if there is none.
    `uuid` tells a table from a later one of the same name.
    """

    uuid: str
    snapshot_id: int | None
    sequence_number: int
    oldest_sequence_number: int
    snapshots: int
    metadata_location: str


@dataclass(frozen=True, slots=True)
class DatasetContent:
    """What the batches of a dataset that count have together; `last_ingest_time` is None if there is none."""

    rows: int = 0
    bytes: int = 0
    last_ingest_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class MirrorStatus:
    """How far the mirror of a dataset is.

    `table` is its name in the catalog, behind that of its namespace. `metadata_location` and `last_batch_id` are empty
    and `mirror_time` is None while nothing is mirrored;
    `pending_changes` are batches to add and to take out; `error_message` is empty if the last try went well.
    """

    enabled: bool
    table: str
    metadata_location: str
    mirrored_batches: int
    pending_changes: int
    last_batch_id: str
    mirror_time: datetime | None
    error_message: str


class MirrorConflictError(Exception):
    """The table is no longer as it was looked at; nothing has been changed. Look and decide anew."""


class TypesChangedError(Exception):
    """The new files need types that the table cannot come to have as it is: rebuild it. Nothing has been changed."""


class MirrorError(Exception):
    """The mirror cannot go on by itself. Its text is one line for the operator."""
