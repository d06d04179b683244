"""Files to the server as one batch, and data files from it: checked, and resumed where interrupted."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from pathlib import Path, PurePosixPath
from typing import TypeVar

from profile_export.client.errors import BackOff, ClientError, checked, messages
from profile_export.v1.batch_pb2 import Batch, BatchState, DataFile
from profile_export.v1.dataset_service_pb2 import (
    CompleteBatchRequest,
    CompleteBatchResponse,
    CreateBatchRequest,
    GetBatchRequest,
    ReadBatchFileRequest,
    UploadBatchRequest,
    UploadBatchResponse,
    UploadFinish,
    UploadFormat,
    UploadStart,
)
from profile_export.v1.dataset_service_pb2_grpc import DatasetServiceStub

_Answer = TypeVar("_Answer")

_CHUNK = 1024 * 1024
_LINE_FORMATS = {UploadFormat.UPLOAD_FORMAT_JSON_LINES, UploadFormat.UPLOAD_FORMAT_CSV}
_OTHER_BEGINNING = {"HASH_MISMATCH", "OFFSET_MISMATCH"}
_RESUMABLE = {BatchState.BATCH_STATE_LOADING, BatchState.BATCH_STATE_SUCCEEDED}


@dataclass(frozen=True)
class UploadFile:
    """One file of an upload; `name` is that within the batch, `[A-Za-z0-9_.-]{1,128}`."""

    path: Path
    format: UploadFormat.ValueType
    name: str


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


class Upload:
    """One run of an upload."""

    def __init__(
        self,
        datasets: DatasetServiceStub,
        metadata: tuple[tuple[str, str], ...],
        patience: timedelta,
        dataset_id: str,
        max_bad_records: int,
        progress: Callable[[UploadProgress], None],
    ) -> None:
        self._datasets = datasets
        self._metadata = metadata
        self._back_off = BackOff(patience)
        self._dataset_id = dataset_id
        self._max_bad_records = max_bad_records
        self._progress = progress
        self._batch_id = ""
        self._file_name = ""
        self._bytes_before = 0
        self._bytes = 0
        self._lines = 0

    async def one_file(self, file: UploadFile, batch_id: str) -> UploadBatchResponse:
        """Send a file as a batch, or into an open one; an empty batch_id stands for one derived from the content."""
        finish = await asyncio.to_thread(_finish, file.path)
        self._batch_id = batch_id or self._derived_id(finish.sha256)
        return await self._send(file, finish)

    async def several_files(self, files: Sequence[UploadFile], batch_id: str) -> CompleteBatchResponse:
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
        request = CompleteBatchRequest(batch_id=self._batch_id)
        return await self._persist(
            lambda: checked(self._datasets.CompleteBatch(request, metadata=self._metadata))
        )

    async def _open(self) -> Batch:
        """Open the batch, or find it as an earlier run has left it."""
        request = CreateBatchRequest(dataset_id=self._dataset_id, batch_id=self._batch_id)
        try:
            return (await checked(self._datasets.CreateBatch(request, metadata=self._metadata))).batch
        except ClientError as error:
            if error.reason != "BATCH_EXISTS" or error.metadata.get("state") != "SUCCEEDED":
                raise
            return await self._batch()  # each file will be compared with what has succeeded

    async def _send(self, file: UploadFile, finish: UploadFinish) -> UploadBatchResponse:
        """Send what the server lacks of a file."""
        self._file_name = file.name
        start = UploadStart(
            dataset_id=self._dataset_id,
            format=file.format,
            batch_id=self._batch_id,
            file_name=file.name,
            max_bad_records=self._max_bad_records,
        )

        async def send() -> UploadBatchResponse:
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
        self, file: UploadFile, start: UploadStart, finish: UploadFinish
    ) -> UploadBatchResponse:
        requests = self._requests(file.path, start, finish)
        return await checked(self._datasets.UploadBatch(requests, metadata=self._metadata))

    async def _requests(
        self, path: Path, start: UploadStart, finish: UploadFinish
    ) -> AsyncIterator[UploadBatchRequest]:
        yield UploadBatchRequest(start=start)
        sent = start.offset
        self._bytes = self._bytes_before + sent
        self._tell(UploadPhase.SENDING)
        source = await asyncio.to_thread(path.open, "rb")
        try:
            source.seek(sent)
            while sent < finish.byte_count and (data := await asyncio.to_thread(source.read, _CHUNK)):
                yield UploadBatchRequest(data=data)
                sent += len(data)
                self._bytes = self._bytes_before + sent
                self._lines += data.count(b"\n") if start.format in _LINE_FORMATS else 0
                self._tell(UploadPhase.SENDING)
        finally:
            source.close()
        self._tell(UploadPhase.CHECKING)
        yield UploadBatchRequest(finish=finish)

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
        request = GetBatchRequest(batch_id=self._batch_id)
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
        return hashlib.sha256(f"{self._dataset_id} {content}".encode()).hexdigest()[:32]

    def _tell(self, phase: UploadPhase) -> None:
        self._progress(UploadProgress(self._batch_id, self._file_name, phase, self._bytes, self._lines))


def _finish(path: Path) -> UploadFinish:
    with path.open("rb") as source:
        sha256 = hashlib.file_digest(source, "sha256").hexdigest()
        return UploadFinish(byte_count=source.tell(), sha256=sha256)


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


_SILENCE_SECONDS = 60.0


@dataclass(frozen=True)
class Download:
    """What a download needs: the service, the headers of the tenant, and how long to look for a lost server."""

    datasets: DatasetServiceStub
    metadata: tuple[tuple[str, str], ...]
    patience: timedelta

    async def fetch(
        self, batch_id: str, file: DataFile, folder: Path, progress: Callable[[int], None]
    ) -> Path:
        """Fetch one data file into a folder; what is there already is not fetched again."""
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
        back_off = BackOff(self.patience)
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
        request = ReadBatchFileRequest(batch_id=batch_id, file_name=file.name, offset=offset)
        call = self.datasets.ReadBatchFile(request, metadata=self.metadata)
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


def _digest(path: Path) -> tuple[int, str]:
    with path.open("rb") as source:
        sha256 = hashlib.file_digest(source, "sha256").hexdigest()
        return source.tell(), sha256


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _holds(path: Path, file: DataFile) -> bool:
    return path.is_file() and _digest(path) == (file.bytes, file.sha256)
