"""Calls about batches: what goes in, what became of it, what comes out."""

from __future__ import annotations

import asyncio
import hashlib
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import Enum
from pathlib import Path, PurePosixPath
from typing import TypeVar

from profile_export.client.calls import BackOff, Calls, ClientError, checked, messages
from profile_export.v1 import dataset_service_pb2 as pb
from profile_export.v1.batch_pb2 import Batch, BatchState, DataFile, RejectedRow
from profile_export.v1.dataset_service_pb2_grpc import DatasetServiceStub

_Answer = TypeVar("_Answer")

_CHUNK = 1024 * 1024
_LINE_FORMATS = {pb.UploadFormat.UPLOAD_FORMAT_JSON_LINES, pb.UploadFormat.UPLOAD_FORMAT_CSV}
_OTHER_BEGINNING = {"HASH_MISMATCH", "OFFSET_MISMATCH"}
_SILENCE_SECONDS = 60.0
_RESUMABLE = {BatchState.BATCH_STATE_LOADING, BatchState.BATCH_STATE_SUCCEEDED}


@dataclass(frozen=True)
class UploadFile:
    """One file of an upload; `name` is that within the batch, `[A-Za-z0-9_.-]{1,128}`."""

    path: Path
    format: pb.UploadFormat.ValueType
    name: str


@dataclass(frozen=True)
class UploadOptions:
    """How files are to be read.

    Attributes:
        max_bad_records: How many bad rows to reject in each file before the whole file is refused.
        null_values: Texts that are read as absent.
        renames: The names that fields get, by those that the files give them.
    """

    max_bad_records: int = 0
    null_values: Sequence[str] = ()
    renames: Mapping[str, str] = field(default_factory=dict)


class UploadPhase(Enum):
    """What an upload is doing."""

    SENDING = "sending"
    CHECKING = "checking"
    """The bytes of a file are there; the server reads its rows."""
    COMMITTING = "committing"
    """All files of a batch of several are there; the server makes them count."""
    WAITING = "waiting"
    """The server was lost and is looked for, or another upload of the same file is in the way."""


@dataclass(frozen=True)
class UploadProgress:
    """How far an upload is.

    Attributes:
        batch_id: Its batch.
        file_name: The file that it is about, by its name within the batch. Empty: the whole batch.
        phase: What it is doing.
        bytes: How many bytes, of all files, the server has or will have by what was sent.
        lines: How many line ends were sent so far, in files whose rows are lines; not those that were there already.
    """

    batch_id: str
    file_name: str
    phase: UploadPhase
    bytes: int
    lines: int


_PLAIN = UploadOptions()


class BatchCalls(Calls):
    """Calls about batches."""

    async def upload(
        self,
        dataset_id: str,
        path: Path,
        upload_format: pb.UploadFormat.ValueType,
        *,
        batch_id: str = "",
        file_name: str = "1",
        options: UploadOptions = _PLAIN,
        progress: Callable[[UploadProgress], None] = lambda _: None,
    ) -> pb.UploadBatchResponse:
        """Send a file: as a batch of its own it counts, whole, when this returns.

        In a batch made by `create_batch` it waits for `complete_batch`. Repeated with the same file it changes nothing:
        without a batch_id, one is derived from dataset and content. What an interrupted upload has sent already is not
        sent again.

        Args:
            dataset_id: A record or event dataset.
            path: The file.
            upload_format: What its bytes are.
            batch_id: Id of the batch. Empty: derived.
            file_name: Its name within the batch, `[A-Za-z0-9_.-]{1,128}`.
            options: How it is to be read.
            progress: Told how far it is.
        """
        run = self._upload(dataset_id, options, progress)
        return await run.one_file(UploadFile(path, upload_format, file_name), batch_id)

    async def upload_files(
        self,
        dataset_id: str,
        files: Sequence[UploadFile],
        *,
        batch_id: str = "",
        options: UploadOptions = _PLAIN,
        progress: Callable[[UploadProgress], None] = lambda _: None,
    ) -> pb.CompleteBatchResponse:
        """Send several files as one batch: all their rows count when this returns, or none.

        Rows count on in the order of the names. Repeated with the same files it changes nothing: without a batch_id,
        one is derived from dataset, names and contents. What an interrupted upload has sent already is not sent again.
        A refused file ends the upload; the batch stays open for a repetition.

        Args:
            dataset_id: A record or event dataset.
            files: The files; their names differ.
            batch_id: Id of the batch. Empty: derived.
            options: How they are to be read.
            progress: Told how far it is.
        """
        return await self._upload(dataset_id, options, progress).several_files(files, batch_id)

    async def create_batch(self, dataset_id: str, batch_id: str = "") -> Batch:
        """Open a batch for several files; an empty batch_id lets the server choose one.

        Repeated with the same batch_id while the batch is LOADING, it is the same batch.
        """
        # A repetition is known by the batch id, or by a request id, not by both.
        request_id = "" if batch_id else str(uuid.uuid4())
        request = pb.CreateBatchRequest(dataset_id=dataset_id, batch_id=batch_id, request_id=request_id)
        return (await self._call(self._datasets.CreateBatch, request)).batch

    async def complete_batch(self, batch_id: str) -> pb.CompleteBatchResponse:
        """Make a batch of several files count."""
        return await self._call(
            self._datasets.CompleteBatch, pb.CompleteBatchRequest(batch_id=batch_id), timeout=None
        )

    async def abort_batch(self, batch_id: str, reason: str = "") -> Batch:
        """Give a LOADING batch up; return it as it stands then."""
        request = pb.AbortBatchRequest(batch_id=batch_id, reason=reason)
        return (await self._call(self._datasets.AbortBatch, request)).batch

    async def revert_batch(self, batch_id: str, reason: str = "") -> Batch:
        """Take a SUCCEEDED batch back; return it as it stands then."""
        request = pb.RevertBatchRequest(batch_id=batch_id, reason=reason)
        return (await self._call(self._datasets.RevertBatch, request)).batch

    async def get_batch(self, batch_id: str) -> Batch:
        """Look a batch up, in any state."""
        return (await self._call(self._datasets.GetBatch, pb.GetBatchRequest(batch_id=batch_id))).batch

    async def list_batches(self, dataset_id: str) -> list[Batch]:
        """List the visible batches of a dataset, oldest first."""
        request = pb.ListBatchesRequest(dataset_id=dataset_id)
        return await self._list(self._datasets.ListBatches, request, lambda page: page.batches)

    async def list_rejected_rows(self, batch_id: str, limit: int | None = None) -> list[RejectedRow]:
        """List the rows that were refused in the last upload of a batch, by file and row; None: all of them."""
        request = pb.ListRejectedRowsRequest(batch_id=batch_id)
        return await self._list(self._datasets.ListRejectedRows, request, lambda page: page.rows, limit)

    async def get_receipt(self, batch_id: str) -> pb.GetReceiptResponse:
        """Fetch the receipt of a visible batch that an export job made, also as it lies beside the files."""
        return await self._call(self._datasets.GetReceipt, pb.GetReceiptRequest(batch_id=batch_id))

    async def list_files(self, batch_id: str) -> list[DataFile]:
        """List the data files of a visible batch, by name."""
        request = pb.ListBatchFilesRequest(batch_id=batch_id)
        return await self._list(self._datasets.ListBatchFiles, request, lambda page: page.files)

    async def download(
        self, batch_id: str, file: DataFile, folder: Path, *, progress: Callable[[int], None] = lambda _: None
    ) -> Path:
        """Fetch one data file into a folder, under its name, and return where it is.

        The bytes go to a neighbour named `….part`, are checked against the SHA-256 and then renamed: a file under
        its name is whole. Repeated, a file that is there already stays, and a part goes on where it ended.
        `progress` is told how many bytes are there.
        """
        name = PurePosixPath(file.name)
        if name.is_absolute() or ".." in name.parts or not name.parts:
            raise ClientError(
                "DATA_LOSS", "FILE_NAME_UNSAFE", f"The server names a file {file.name!r}: not written."
            )
        target = folder.joinpath(*name.parts)
        part = target.with_name(target.name + ".part")
        await asyncio.to_thread(target.parent.mkdir, parents=True, exist_ok=True)
        if await asyncio.to_thread(_holds, target, file):
            progress(file.bytes)
            return target
        back_off = BackOff(self._patience)
        while True:
            try:
                await self._append(batch_id, file, part, progress, back_off)
                break
            except ClientError as error:
                if error.code != "UNAVAILABLE":
                    raise
                await back_off.wait(error)
        if not await asyncio.to_thread(_holds, part, file):
            await asyncio.to_thread(part.unlink)
            raise ClientError(
                "DATA_LOSS", "HASH_MISMATCH", f"The bytes of {file.name} are not those promised: try again."
            )
        await asyncio.to_thread(part.replace, target)
        return target

    async def _append(
        self, batch_id: str, file: DataFile, part: Path, progress: Callable[[int], None], back_off: BackOff
    ) -> None:
        """Add to a part what it lacks."""
        offset = await asyncio.to_thread(_size, part)
        if offset > file.bytes:
            await asyncio.to_thread(part.unlink)
            offset = 0
        request = pb.ReadBatchFileRequest(batch_id=batch_id, file_name=file.name, offset=offset)
        call = self._datasets.ReadBatchFile(request, metadata=self._metadata)
        output = await asyncio.to_thread(part.open, "ab")
        try:
            async for message in messages(call, _SILENCE_SECONDS):
                back_off.heard()
                if message.data:
                    await asyncio.to_thread(output.write, message.data)
                    offset += len(message.data)
                    progress(offset)
        finally:
            call.cancel()
            output.close()

    def _upload(
        self, dataset_id: str, options: UploadOptions, progress: Callable[[UploadProgress], None]
    ) -> Upload:
        return Upload(self._datasets, self._metadata, self._patience, dataset_id, options, progress)


class Upload:
    """One run of an upload."""

    def __init__(
        self,
        datasets: DatasetServiceStub,
        metadata: tuple[tuple[str, str], ...],
        patience: timedelta,
        dataset_id: str,
        options: UploadOptions,
        progress: Callable[[UploadProgress], None],
    ) -> None:
        self._datasets = datasets
        self._metadata = metadata
        self._back_off = BackOff(patience)
        self._dataset_id = dataset_id
        self._options = options
        self._progress = progress
        self._batch_id = ""
        self._file_name = ""
        self._bytes_before = 0
        self._bytes = 0
        self._lines = 0

    async def one_file(self, file: UploadFile, batch_id: str) -> pb.UploadBatchResponse:
        """Send a file as a batch, or into an open one; an empty batch_id stands for one derived from the content."""
        finish = await asyncio.to_thread(_finish, file.path)
        self._batch_id = batch_id or self._derived_id(finish.sha256)
        return await self._send(file, finish)

    async def several_files(self, files: Sequence[UploadFile], batch_id: str) -> pb.CompleteBatchResponse:
        """Send files as one batch and complete it; an empty batch_id stands for one derived from all of them."""
        finishes = [await asyncio.to_thread(_finish, file.path) for file in files]
        contents = (f"{file.name} {finish.sha256}" for file, finish in zip(files, finishes, strict=True))
        self._batch_id = batch_id or self._derived_id("\n".join(contents))
        batch = await self._persist(self._open)
        # A derived id stands for these very contents; under another one a file is compared before it counts as sent.
        complete = () if batch_id else [upload.file_name for upload in batch.uploads if upload.complete]
        for file, finish in zip(files, finishes, strict=True):
            if file.name not in complete:
                batch = (await self._send(file, finish)).batch
            self._bytes_before += finish.byte_count
        _check_no_others(batch, {file.name for file in files})
        self._file_name, self._bytes = "", self._bytes_before
        self._tell(UploadPhase.COMMITTING)
        request = pb.CompleteBatchRequest(batch_id=self._batch_id)
        return await self._persist(
            lambda: checked(self._datasets.CompleteBatch(request, metadata=self._metadata))
        )

    async def _open(self) -> Batch:
        """Open the batch, or find it as an earlier run has left it."""
        request = pb.CreateBatchRequest(dataset_id=self._dataset_id, batch_id=self._batch_id)
        try:
            return (await checked(self._datasets.CreateBatch(request, metadata=self._metadata))).batch
        except ClientError as error:
            if error.reason != "BATCH_EXISTS" or error.metadata.get("state") != "SUCCEEDED":
                raise
            return await self._batch()  # each file will be compared with what has succeeded

    async def _send(self, file: UploadFile, finish: pb.UploadFinish) -> pb.UploadBatchResponse:
        """Send what the server lacks of a file."""
        self._file_name = file.name
        start = pb.UploadStart(
            dataset_id=self._dataset_id,
            format=file.format,
            batch_id=self._batch_id,
            file_name=file.name,
            max_bad_records=self._options.max_bad_records,
            null_values=self._options.null_values,
            renames=self._options.renames,
        )

        async def send() -> pb.UploadBatchResponse:
            start.offset = await self._received(file.name, finish.byte_count)
            self._back_off.heard()
            try:
                return await self._attempt(file, start, finish)
            except ClientError as error:
                if not start.offset or error.reason not in _OTHER_BEGINNING:
                    raise
            start.offset = 0  # the server holds the beginning of another file
            return await self._attempt(file, start, finish)

        return await self._persist(send)

    async def _attempt(
        self, file: UploadFile, start: pb.UploadStart, finish: pb.UploadFinish
    ) -> pb.UploadBatchResponse:
        requests = self._requests(file.path, start, finish)
        return await checked(self._datasets.UploadBatch(requests, metadata=self._metadata))

    async def _requests(
        self, path: Path, start: pb.UploadStart, finish: pb.UploadFinish
    ) -> AsyncIterator[pb.UploadBatchRequest]:
        yield pb.UploadBatchRequest(start=start)
        sent = start.offset
        self._bytes = self._bytes_before + sent
        self._tell(UploadPhase.SENDING)
        source = await asyncio.to_thread(path.open, "rb")
        try:
            source.seek(sent)
            while sent < finish.byte_count and (data := await asyncio.to_thread(source.read, _CHUNK)):
                yield pb.UploadBatchRequest(data=data)
                sent += len(data)
                self._bytes = self._bytes_before + sent
                self._lines += data.count(b"\n") if start.format in _LINE_FORMATS else 0
                self._tell(UploadPhase.SENDING)
        finally:
            source.close()
        self._tell(UploadPhase.CHECKING)
        yield pb.UploadBatchRequest(finish=finish)

    async def _received(self, file_name: str, size: int) -> int:
        """How many bytes of a file of this size the server holds already."""
        try:
            batch = await self._batch()
        except ClientError as error:
            if error.code != "NOT_FOUND":
                raise
            return 0
        received = sum(upload.received_bytes for upload in batch.uploads if upload.file_name == file_name)
        return received if batch.state in _RESUMABLE and received <= size else 0

    async def _batch(self) -> Batch:
        request = pb.GetBatchRequest(batch_id=self._batch_id)
        return (await checked(self._datasets.GetBatch(request, metadata=self._metadata))).batch

    async def _persist(self, attempt: Callable[[], Awaitable[_Answer]]) -> _Answer:
        """Try again while the server is away for a moment, or another upload of the same file is under way."""
        while True:
            try:
                answer = await attempt()
            except ClientError as error:
                if error.code != "UNAVAILABLE" and error.reason != "UPLOAD_IN_PROGRESS":
                    raise
                self._tell(UploadPhase.WAITING)
                await self._back_off.wait(error)
            else:
                self._back_off.heard()
                return answer

    def _derived_id(self, content: str) -> str:
        if self._options.null_values or self._options.renames:  # the same bytes are other rows then
            content += json.dumps([sorted(self._options.null_values), sorted(self._options.renames.items())])
        return hashlib.sha256(f"{self._dataset_id} {content}".encode()).hexdigest()[:32]

    def _tell(self, phase: UploadPhase) -> None:
        self._progress(UploadProgress(self._batch_id, self._file_name, phase, self._bytes, self._lines))


def _finish(path: Path) -> pb.UploadFinish:
    with path.open("rb") as source:
        sha256 = hashlib.file_digest(source, "sha256").hexdigest()
        return pb.UploadFinish(byte_count=source.tell(), sha256=sha256)


def _check_no_others(batch: Batch, names: set[str]) -> None:
    """Refuse to complete a batch with files that nobody asked for."""
    others = [
        upload.file_name for upload in batch.uploads if upload.complete and upload.file_name not in names
    ]
    if others:
        raise ClientError(
            "FAILED_PRECONDITION",
            "BATCH_HOLDS_OTHERS",
            f"The batch {batch.id} also holds {', '.join(others)}: choose another batch id.",
        )


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _holds(path: Path, file: DataFile) -> bool:
    return path.is_file() and _finish(path) == pb.UploadFinish(byte_count=file.bytes, sha256=file.sha256)
