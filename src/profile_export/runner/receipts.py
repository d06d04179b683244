"""Puts receipts beside the files that they are about, after the commit: a batch counts with or without the copy."""

from __future__ import annotations

import asyncio

import structlog

from profile_export.runner.ports import Lake
from profile_export.store.receipts import Receipts

_log = structlog.get_logger(__name__)


class ReceiptWriter:
    """Writes every receipt that is not on the disk yet, whoever made it: a former process may have died before."""

    def __init__(self, receipts: Receipts, lake: Lake) -> None:
        self._receipts = receipts
        self._lake = lake
        # One at a time: two workers of one server would write the same file.
        self._writing = asyncio.Lock()

    async def write_all(self) -> None:
        """Write what is to be written; what the lake refuses is logged, and tried again at the next call.

        It is noted after it is safe on the disk: after a crash in between the same bytes are written once more.
        """
        written = []
        async with self._writing:
            for one in await self._receipts.unwritten():
                try:
                    await asyncio.to_thread(self._lake.write, one.path, one.document)
                except OSError:
                    _log.warning("receipt_not_written", path=one.path, exc_info=True)
                else:
                    written.append(one.batch_key)
            if written:
                await self._receipts.note_written(written)
