"""Files to the server and back, whole, checked, and going on where they were interrupted."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path, PurePosixPath

from profile_export.client.errors import BackOff, ClientError, checked, messages
from profile_export.v1.batch_pb2 import BatchState, DataFile
from profile_export.v1.dataset_service_pb2 import (
    GetBatchRequest,
    ReadBatchFileRequest,
    UploadBatchRequest,
    UploadBatchResponse,
    UploadFinish,
    UploadFormat,
    UploadStart,
)
from profile_export.v1.dataset_service_pb2_grpc import DatasetServiceStub

Progress = Callable[[int], None]
"""Told how many bytes of the whole have been moved."""

_CHUNK = 1024 * 1024
_SILENCE_SECONDS = 60.0
_OTHER_BEGINNING = {"HASH_MISMATCH", "OFFSET_MISMATCH"}


@dataclass(frozen=True)
class Transfer:
    """What every transfer needs: the service, the headers of the tenant, and how long to look for a lost server."""

    datasets: DatasetServiceStub
    metadata: tuple[tuple[str, str], ...]
    patience: timedelta

    async def upload(
        self,
        dataset_id: str,
        path: Path,
        upload_format: UploadFormat.ValueType,
        batch_id: str,
        progress: Progress,
    ) -> UploadBatchResponse:
        """Send a file as one batch, resuming what the server has of it already."""
        size, sha256 = await asyncio.to_thread(_digest, path)
        batch_id = batch_id or hashlib.sha256(f"{dataset_id} {sha256}".encode()).hexdigest()[:32]
        start = UploadStart(dataset_id=dataset_id, format=upload_format, batch_id=batch_id)
        finish = UploadFinish(byte_count=size, sha256=sha256)
        back_off, resume = BackOff(self.patience), True
        while True:
            try:
                start.offset = await self._received(batch_id, size) if resume else 0
                back_off.heard()
                requests = _requests(path, start, finish, progress)
                answer = await checked(self.datasets.UploadBatch(requests, metadata=self.metadata))
                progress(size)
                return answer
            except ClientError as error:
                if resume and start.offset and error.reason in _OTHER_BEGINNING:
                    resume = False  # the batch holds the beginning of another file
                elif error.code == "UNAVAILABLE" or error.reason == "UPLOAD_IN_PROGRESS":
                    await back_off.wait(error)
                else:
                    raise

    async def download(self, batch_id: str, file: DataFile, folder: Path, progress: Progress) -> Path:
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

    async def _received(self, batch_id: str, size: int) -> int:
        """How many bytes of a file of this size the server holds already."""
        try:
            request = GetBatchRequest(batch_id=batch_id)
            batch = (await checked(self.datasets.GetBatch(request, metadata=self.metadata))).batch
        except ClientError as error:
            if error.code != "NOT_FOUND":
                raise
            return 0
        resumable = batch.state in {BatchState.BATCH_STATE_LOADING, BatchState.BATCH_STATE_SUCCEEDED}
        received = sum(upload.received_bytes for upload in batch.uploads if upload.file_name == "1")
        return received if resumable and received <= size else 0

    async def _append(
        self, batch_id: str, file: DataFile, part: Path, progress: Progress, back_off: BackOff
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


async def _requests(
    path: Path, start: UploadStart, finish: UploadFinish, progress: Progress
) -> AsyncIterator[UploadBatchRequest]:
    yield UploadBatchRequest(start=start)
    sent = start.offset
    source = await asyncio.to_thread(path.open, "rb")
    try:
        source.seek(sent)
        while sent < finish.byte_count and (data := await asyncio.to_thread(source.read, _CHUNK)):
            yield UploadBatchRequest(data=data)
            sent += len(data)
            progress(sent)
    finally:
        source.close()
    yield UploadBatchRequest(finish=finish)


def _digest(path: Path) -> tuple[int, str]:
    with path.open("rb") as source:
        sha256 = hashlib.file_digest(source, "sha256").hexdigest()
        return source.tell(), sha256


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _holds(path: Path, file: DataFile) -> bool:
    return path.is_file() and _digest(path) == (file.bytes, file.sha256)
