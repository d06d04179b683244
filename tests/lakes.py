"""A lake that keeps its files in memory: who reads one without saying so, or writes one elsewhere, finds nothing."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from profile_export.domain.export.plan import ESTIMATES, GRAPHS, MAPPINGS

CHUNK_BYTES = 1_000
_NO_DATASETS = {GRAPHS, ESTIMATES, MAPPINGS}


@dataclass
class _File:
    content: bytes
    written: float


class MemoryLake:
    """See `profile_export.application.ports.Lake`. Below `root` there is what somebody reads just now, and no more."""

    def __init__(self, data_dir: Path) -> None:
        self.root = data_dir / "lake"
        self.files: dict[str, _File] = {}
        self._scratch, self._uploads = data_dir / "scratch", data_dir / "uploads"
        self._instance: str | None = None
        self._trash: list[str] = []
        self._readers: Counter[str] = Counter()

    def open(self) -> None:
        for folder in (self.root, self._scratch, self._uploads):
            folder.mkdir(parents=True, exist_ok=True)

    def take(self) -> None:
        pass

    def take_alone(self) -> bool:
        return True

    def let_go(self) -> None:
        pass

    def instance(self) -> str | None:
        return self._instance

    def become(self, instance_id: str) -> None:
        self._instance = instance_id

    @asynccontextmanager
    async def readable(self, keys: Iterable[str]) -> AsyncIterator[None]:
        wanted = list(keys)
        for key in wanted:
            self._readers[key] += 1
            place = self.root / key
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(self.files[key].content)
        try:
            yield
        finally:
            for key in wanted:
                self._readers[key] -= 1
                if not self._readers[key]:
                    (self.root / key).unlink()

    def read(self, key: str, offset: int, length: int) -> Iterator[bytes]:
        content = self.files[key].content[offset : offset + length]
        return (content[at : at + CHUNK_BYTES] for at in range(0, len(content), CHUNK_BYTES))

    def size(self, key: str) -> int:
        if key not in self.files:
            raise FileNotFoundError(key)
        return len(self.files[key].content)

    def location(self, key: str) -> str:
        return f"memory:///{key}"

    def staging(self, folder: str) -> Path:
        return self._scratch / folder

    def publish(self, keys: Collection[str]) -> None:
        for key in keys:
            place = self._scratch / key
            self.write(key, place.read_bytes())
            place.unlink()

    def write(self, key: str, content: bytes) -> None:
        self.files[key] = _File(content, time.time())

    def exists(self, folder: str) -> bool:
        return bool(self._within(folder)) or any(
            place.is_file() for place in (self._scratch / folder).rglob("*")
        )

    def remove(self, folder: str) -> None:
        shutil.rmtree(self._scratch / folder, ignore_errors=True)
        for key in self._within(folder):
            del self.files[key]

    def keep_only(self, folder: str, keys: Collection[str]) -> None:
        shutil.rmtree(self._scratch / folder, ignore_errors=True)
        for key in set(self._within(folder)) - set(keys):
            del self.files[key]

    def upload(self, name: str) -> Path:
        return self._uploads / name

    def received(self, name: str) -> int:
        return self.upload(name).stat().st_size if self.upload(name).exists() else 0

    def forget_upload(self, name: str) -> None:
        self.upload(name).unlink(missing_ok=True)

    def staged(self) -> Sequence[str]:
        return [upload.name for upload in self._uploads.glob("*")]

    def datasets(self) -> Collection[str]:
        return {key.split("/")[0] for key in self.files} - _NO_DATASETS

    def untouched(self, least: timedelta) -> Sequence[str]:
        newest: dict[str, float] = {}
        for key, file in self.files.items():
            folder = "/".join(key.split("/")[:2])
            newest[folder] = max(newest.get(folder, 0), file.written)
        before = time.time() - least.total_seconds()
        return [folder for folder, written in newest.items() if written <= before]

    def untouched_within(self, folder: str, least: timedelta) -> Sequence[str]:
        depth = folder.count("/") + 2
        before = time.time() - least.total_seconds()
        old = {key for key in self._within(folder.removesuffix("/*")) if self.files[key].written <= before}
        return sorted({"/".join(key.split("/")[:depth]) for key in old})

    def set_aside(self, keys: Iterable[str], uploads: Iterable[str] = ()) -> None:
        for folder in keys:
            for key in self._within(folder):
                self._trash.append(f"lake/{key}")
                del self.files[key]
        for name in uploads:
            self._trash.append(f"uploads/{name}")
            self.forget_upload(name)

    def empty_trash(self, now: datetime, keep: timedelta) -> Sequence[str]:  # noqa: ARG002 - the port's signature
        return []

    def trash(self) -> Sequence[str]:
        return self._trash

    def _within(self, folder: str) -> list[str]:
        return [key for key in self.files if key == folder or key.startswith(f"{folder}/")]
