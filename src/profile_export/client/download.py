"""Data files from the server, whole, checked, and going on where they were interrupted."""

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path, PurePosixPath

from profile_export.client.errors import BackOff, ClientError, messages
from profile_export.v1.batch_pb2 import DataFile
from profile_export.v1.dataset_service_pb2 import ReadBatchFileRequest
from profile_export.v1.dataset_service_pb2_grpc import DatasetServiceStub

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
