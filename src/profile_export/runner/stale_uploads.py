"""Gives up batches that nobody goes on uploading, and takes back the room that their bytes had."""

from __future__ import annotations

from datetime import timedelta

import structlog

from profile_export.ingest.loading import Loading
from profile_export.runner.background import repeat
from profile_export.store.expiries import Expiries

_POLL_SECONDS = 60.0
_log = structlog.get_logger(__name__)


class StaleUploadSweeper:
    """Looks for batches that have been silent for too long; every server has one.

    Args:
        expiries: What time ends.
        loading: What takes back what was uploaded.
        kept_for: How long a batch that is not complete may be silent.
    """

    def __init__(self, expiries: Expiries, loading: Loading, kept_for: timedelta) -> None:
        self._expiries = expiries
        self._loading = loading
        self._kept_for = kept_for

    async def run(self) -> None:
        """Look until cancelled."""
        await repeat(self.step, poll_seconds=_POLL_SECONDS)

    async def step(self) -> bool:
        """Give up some of what is due. What a crash leaves on the disk is found as left over, under the same names."""
        given_up = await self._expiries.expire_uploads(self._kept_for)
        await self._loading.clear_away(given_up.staged)
        if given_up.batches:
            _log.info("uploads_given_up", batches=given_up.batches)
        return bool(given_up.batches)
