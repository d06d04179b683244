"""The lake in a local folder, who uses it, and its trash. It blocks: callers on the event loop go through a thread."""

from __future__ import annotations

import errno
import fcntl
import glob
import math
import os
import re
import secrets
import shutil
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from datetime import UTC, datetime, timedelta
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import structlog

from profile_export.domain.export.plan import ESTIMATES, GRAPHS, MADE_NAME, MAPPINGS
from profile_export.domain.export.receipt import RECEIPT_FILE
from profile_export.lake.data_files import sync
from profile_export.processes.plain_file import open_plain

_NOT_LOCKABLE = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
"""Errors of file systems without locks, where nobody can tell who uses the lake."""


CHUNK_BYTES = 1024 * 1024
_INSTANCE = "instance"
_MOST_INSTANCE_BYTES = 1_000
_MADE_LATER = ("trash", "iceberg")
_BATCH_DEPTH = 2
_OF_A_BATCH = re.compile(rf"{MADE_NAME.pattern}|[0-9]+|{re.escape(RECEIPT_FILE)}(\.[0-9a-f]+\.part)?")
"""What the folder of a batch has in it: folders of attempts, and a receipt."""


class LocalLake:
    """Data files under `root`, each in the folder of its batch, and the bytes of uploads that are under way.

    Files that no row ever named are moved to the trash, not removed.
    """

    def __init__(self, data_dir: Path) -> None:
        self._trash = Trash(data_dir)
        self._lock_path = data_dir / "lake.lock"
        self._lock_file: BinaryIO | None = None
        """Locked by this process; the lock goes with the process."""
        self.root = data_dir / "lake"
        self._uploads = data_dir / "uploads"

    def open(self) -> None:
        """Make the folders, but for those that are made when something comes into them.

        Raises:
            OSError: One cannot be made, or something else is in its place.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        self._uploads.mkdir(parents=True, exist_ok=True)
        for name in _MADE_LATER:
            place = self.root.with_name(name)
            if os.path.lexists(place) and not place.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(place))

    def __str__(self) -> str:
        return str(self.root)

    def take(self) -> None:
        """Use the lake beside others. Waits for who takes it over at the moment.

        Raises:
            OSError: The data directory cannot be used.
        """
        self.let_go()
        self._lock_path.parent.mkdir(parents=True, exist_ok=True)
        self._lock_file = open_plain(self._lock_path, "ab")
        self._lock(fcntl.LOCK_SH)

    def take_alone(self) -> bool:
        """Keep others from using the lake, until it is taken again or let go; False if another process uses it."""
        try:
            self._lock(fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def let_go(self) -> None:
        """Use the lake no longer."""
        if self._lock_file:
            self._lock_file.close()
            self._lock_file = None

    def _lock(self, how: int) -> None:
        if self._lock_file is None:
            return
        try:
            fcntl.flock(self._lock_file, how)
        except OSError as error:
            if error.errno not in _NOT_LOCKABLE:
                raise

    def readable(self, keys: Iterable[str]) -> AbstractAsyncContextManager[None]:  # noqa: ARG002 - the port's
        """Bring files below `root`, where they are."""
        return nullcontext()

    def size(self, key: str) -> int:
        """Return how many bytes a data file has.

        Raises:
            FileNotFoundError: It is not there.
        """
        return (self.root / key).stat().st_size

    def staging(self, folder: str) -> Path:
        """Return the place of a folder's files, which are written where they stay; it need not exist yet."""
        return self.root / folder

    def exists(self, folder: str) -> bool:
        """Say whether a folder is there."""
        return (self.root / folder).exists()

    def upload(self, name: str) -> Path:
        """Return the place of an upload's bytes as sent; it need not exist yet."""
        return self._uploads / name

    def location(self, path: str) -> str:
        """Return the URI of a data file for readers on this machine."""
        return (self.root / path).resolve().as_uri()

    def received(self, name: str) -> int:
        """Return how many bytes of an upload have arrived."""
        upload = self.upload(name)
        return upload.stat().st_size if upload.exists() else 0

    def read(self, path: str, offset: int, length: int) -> Iterator[bytes]:
        """Yield a stretch of a data file in chunks of at most `CHUNK_BYTES`."""
        with (self.root / path).open("rb") as file:
            file.seek(offset)
            while length > 0 and (chunk := file.read(min(CHUNK_BYTES, length))):
                length -= len(chunk)
                yield chunk

    def forget_upload(self, name: str) -> None:
        """Remove an upload's bytes, whether or not there are any."""
        self.upload(name).unlink(missing_ok=True)

    def remove(self, folder: str) -> None:
        """Remove a batch's folder with all that is in it, whether or not it exists."""
        shutil.rmtree(self.root / folder, ignore_errors=True)

    def publish(self, keys: Collection[str]) -> None:
        """Make the names of files survive a power cut; what the files hold is for who wrote them.

        Raises:
            FileNotFoundError: A folder is not there.
        """
        for folder in {(self.root / key).parent for key in keys}:
            for directory in (folder, *folder.parents):
                sync(directory)
                if directory == self.root:
                    break

    def write(self, path: str, content: bytes) -> None:
        """Put a small file into a batch's folder, which need not exist: whole, and safe on the disk, or not at all.

        A file of that name is replaced. Several processes that write it at once write the same; what one of them left
        that was killed half-way is removed.
        """
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        part = place.with_name(f"{place.name}.{secrets.token_hex(8)}.part")
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        try:
            part.replace(place)
        except FileNotFoundError:
            # Another process has written the file since, and took this part for one that was left.
            if not place.exists():
                raise
        self.publish([path])
        for left in place.parent.glob(f"{glob.escape(place.name)}.*part"):
            left.unlink(missing_ok=True)

    def keep_only(self, folder: str, paths: Collection[str]) -> None:
        """Remove from a batch's folder every file but these (relative to the root), and the folders left empty.

        It may also be the folder of an attempt in one. What is no attempt's goes to the trash.
        """
        kept = {self.root / path for path in paths}
        if len(PurePosixPath(folder).parts) == _BATCH_DEPTH:
            self.set_aside(
                str(place.relative_to(self.root))
                for place in (self.root / folder).glob("*")
                if place not in kept and not _OF_A_BATCH.fullmatch(place.name)
            )
        for place, _, names in os.walk(self.root / folder, topdown=False):
            for name in names:
                file = Path(place, name)
                if file not in kept:
                    file.unlink()
            if not any(Path(place).iterdir()):
                Path(place).rmdir()

    def set_aside(self, paths: Iterable[str], uploads: Iterable[str] = ()) -> None:
        """Move files and folders that nobody has named, and bytes of such uploads, to the trash."""
        named = {"lake": paths, "uploads": uploads}
        self._trash.put([f"{top}/{path}" for top, some in named.items() for path in some])

    def empty_trash(self, now: datetime, keep: timedelta) -> Sequence[str]:
        """Remove for good what the trash has kept for so long, see `Trash.empty`."""
        return self._trash.empty(now, keep)

    def trash(self) -> Sequence[str]:
        """Return what the trash holds, see `Trash.held`."""
        return self._trash.held()

    def staged(self) -> list[str]:
        """Return under which names there are bytes of uploads."""
        return [upload.name for upload in self._uploads.iterdir()] if self._uploads.is_dir() else []

    def untouched(self, least: timedelta) -> list[str]:
        """Return the folders of batches in which nothing has been written for so long.

        Kept graphs are not among them: they belong to no batch.
        """
        folders = (folder for folder in self.root.glob("*/*") if folder.is_dir())
        return [folder for folder in self._untouched(folders, least) if not folder.startswith(f"{GRAPHS}/")]

    def untouched_within(self, folder: str, least: timedelta) -> list[str]:
        """Return what lies in a folder, or in its folders where it ends with `/*`, and has not been written so long."""
        return self._untouched(self.root.glob(f"{folder}/*"), least)

    def _untouched(self, places: Iterable[Path], least: timedelta) -> list[str]:
        before = time.time() - least.total_seconds()
        return [
            str(place.relative_to(self.root))
            for place in places
            if not self._is_behind_a_link(place) and _last_written(place) <= before
        ]

    def _is_behind_a_link(self, place: Path) -> bool:
        """Say whether somebody has linked a place into the lake: what lies there is known elsewhere, if at all."""
        steps = place.relative_to(self.root).parts
        return any(self.root.joinpath(*steps[:depth]).is_symlink() for depth in range(1, len(steps) + 1))

    def datasets(self) -> set[str]:
        """Return the names of the top folders that have something of a dataset in them."""
        tops = {folder.relative_to(self.root).parts[0] for folder in self.root.glob("*/*")}
        return tops - {GRAPHS, ESTIMATES, MAPPINGS}

    def instance(self) -> str | None:
        """Return the id of the instance that the lake is of; None if it says nothing."""
        try:
            with open_plain(self.root / _INSTANCE, "rb") as file:
                return file.read(_MOST_INSTANCE_BYTES).decode(errors="replace").strip()
        except FileNotFoundError:
            return None

    def become(self, instance_id: str) -> None:
        """Say of which instance the lake is from now on."""
        self.write(_INSTANCE, f"{instance_id}\n".encode())


def _last_written(folder: Path) -> float:
    """Return when a file, or something in a folder, was written last, as seconds since 1970.

    Infinity where it has just gone.
    """
    times = []
    inside = (Path(place, name) for place, *names in os.walk(folder) for name in chain(*names))
    for path in chain([folder], inside):
        with suppress(FileNotFoundError):  # it has just gone
            times.append(path.lstat().st_mtime)
    return max(times, default=math.inf)


_TIME = "%Y%m%dT%H%M%SZ"
_MOST_SAID = 20
"""How many names stand in one line of the log; `db check` lists all."""
_log = structlog.get_logger(__name__)
_NAME = re.compile(r"([0-9]{8}T[0-9]{6}Z)-[0-9a-f]{8}")


class Trash:
    """The folder `trash` of a data directory, for what lies in it and no row ever named. Paths are relative to it.

    A folder of the trash says in its name when it was filled, which is all that its end is judged by; under it
    everything lies at its former path.
    """

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._root = data_dir / "trash"

    def put(self, paths: Sequence[str]) -> None:
        """Move files and folders here, safe on the disk, and say so in the log; what cannot be moved is left alone."""
        if not paths:
            return
        place = self._root / f"{datetime.now(UTC).strftime(_TIME)}-{secrets.token_hex(4)}"
        moved, stuck = [], []
        changed = set()
        for path in paths:
            source, target = self._data_dir / path, place / path
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                source.rename(target)
            except FileNotFoundError:  # a server beside this one is clearing up, too
                continue
            except OSError:
                stuck.append(path)
                continue
            moved.append(path)
            changed |= {source.parent, *_up_to(self._data_dir, target.parent)}
        for folder in changed:
            with suppress(FileNotFoundError):
                sync(folder)
        if moved:
            _log.warning("moved_to_trash", trash=place.name, count=len(moved), paths=moved[:_MOST_SAID])
        else:
            shutil.rmtree(place, ignore_errors=True)
        if stuck:
            _log.warning("not_moved_to_trash", count=len(stuck), paths=stuck[:_MOST_SAID])

    def held(self) -> list[str]:
        """Return the paths of the files that are here, from the trash on, sorted."""
        return sorted(
            str(path.relative_to(self._root))
            for path in self._root.rglob("*")
            if path.is_symlink() or not path.is_dir()
        )

    def empty(self, now: datetime, keep: timedelta) -> list[str]:
        """Remove for good what has been here that long; return the names of the folders that went.

        What does not have a name of ours was not put here by us, and stays.
        """
        gone = []
        for folder in sorted(self._root.iterdir()) if self._root.is_dir() else ():
            found = _NAME.fullmatch(folder.name)
            if found is None or folder.is_symlink() or not folder.is_dir():
                continue
            if datetime.strptime(found[1], _TIME).replace(tzinfo=UTC) + keep <= now:
                shutil.rmtree(folder, ignore_errors=True)
                gone += [] if folder.exists() else [folder.name]
        return gone


def _up_to(top: Path, folder: Path) -> list[Path]:
    """Return a folder and those above it, up to one of them."""
    return [folder, *(parent for parent in folder.parents if parent.is_relative_to(top))]
