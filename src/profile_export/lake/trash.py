"""The trash: what lies in the data directory and no row ever named. It is moved here, and goes for good much later.

It blocks. A folder of the trash says in its name when it was filled, which is all that its end is judged by; under it
everything lies at its former path.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import structlog

_TIME = "%Y%m%dT%H%M%SZ"
_MOST_SAID = 20
"""How many names stand in one line of the log; `db check` lists all."""
_log = structlog.get_logger(__name__)
_NAME = re.compile(r"([0-9]{8}T[0-9]{6}Z)-[0-9a-f]{8}")


class Trash:
    """The folder `trash` of a data directory. Paths are relative to that directory."""

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
                _sync(folder)
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


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
