"""Kept graphs: mappings that earlier attempts have made, each good for exactly the batches that it lists.

A cache: one that is damaged is made anew, and where the folder cannot be used, nothing is kept.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from profile_export.engines.mapping import mapping_facts

_MOST_KEPT = 3
"""The newest, and some for jobs of other moments: a former attempt's, one that a revert makes fit again."""

_NAME = re.compile(r"[0-9a-f]{64}\.parquet")


class KeptGraphs:
    """The kept graphs of a tenant, each a file named by the SHA-256 of what is in it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def fetch(self, batches: Mapping[str, int], target: Path) -> bool:
        """Get the graph that was made from most of these batches and from no other; False if there is none.

        It stands at `target` then, where pruning cannot reach it. One that turns out to be damaged is removed.
        """
        fitting = []
        for file in self._newest_first():
            with suppress(OSError, ValueError):
                made_from = mapping_facts(file).batches
                if made_from.items() <= batches.items():
                    fitting.append((len(made_from), file))
        for _, file in sorted(fitting, reverse=True):
            with suppress(OSError):
                _link(file, target)
                if _digest(target) == file.stem:
                    _touch(file)
                    return True
                file.unlink()
            target.unlink(missing_ok=True)
        return False

    def keep(self, mapping: Path) -> None:
        """Keep a mapping whose bytes are safe on the disk, and of all no more than a few.

        It appears whole or not at all. A graph that cannot be kept costs the next attempt time, and this one nothing.
        """
        with suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            second_name = mapping.with_suffix(".kept")
            _link(mapping, second_name)
            second_name.replace(self._folder / f"{_digest(mapping)}.parquet")
            for file in self._newest_first()[_MOST_KEPT:]:
                file.unlink(missing_ok=True)

    def _newest_first(self) -> list[Path]:
        """Return the graphs by the time when they were made or of use."""
        found = []
        with suppress(OSError), os.scandir(self._folder) as entries:
            for entry in entries:
                # Another attempt may be pruning. What has another name was not kept by us.
                with suppress(OSError):
                    if _NAME.fullmatch(entry.name) is None:
                        continue
                    found.append((entry.stat().st_mtime_ns, Path(entry.path)))
        return [path for _, path in sorted(found, reverse=True)]


def _link(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where the file system cannot do that."""
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)
        with target.open("rb") as copy:
            os.fsync(copy.fileno())


def _touch(file: Path) -> None:
    # Pruned meanwhile, or not ours to touch: the link that was made of it is as good.
    with suppress(OSError):
        os.utime(file)


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
