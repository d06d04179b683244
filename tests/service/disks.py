"""Small disks of their own for tests that fill them, or make them read-only: real file systems."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_MEGABYTES = 8


class SmallDisk:
    """A file system of some megabytes."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._ballast = place / "ballast"

    def fill(self, free: int = 0) -> None:
        """Leave so many bytes free, and what a block takes more."""
        with self._ballast.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                file.truncate(max(0, file.tell() - free))

    def empty(self) -> None:
        self._ballast.unlink()

    def make_read_only(self) -> None:
        _run("mount", "-o", "remount,ro", str(self.place))

    def make_writable(self) -> None:
        _run("mount", "-o", "remount,rw", str(self.place))


@contextmanager
def small_disk(place: Path) -> Iterator[SmallDisk]:
    """Mount one, or skip the test where this user may not."""
    place.mkdir(parents=True)
    try:
        _run("mount", "-t", "tmpfs", "-o", f"size={_MEGABYTES}m", "tmpfs", str(place))
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"this user may mount no file system: {error}")
    try:
        yield SmallDisk(place)
    finally:
        _run("umount", "--lazy", str(place))


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)
