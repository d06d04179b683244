"""Work in the background: again and again, beside everything else, and never the end of the server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import structlog

_LEAST_SECONDS = 1.0
"""How long changes gather before they are looked at, so that a hundred in a second are one look and not a hundred."""
_log = structlog.get_logger(__name__)


async def repeat(
    step: Callable[[], Awaitable[bool]], *, poll_seconds: float, changed: asyncio.Event | None = None
) -> None:
    """Take steps until cancelled.

    Args:
        step: Does some of the work; says whether more is waiting. One that fails is logged and taken again later.
        poll_seconds: How long to wait where nothing is waiting or a step has failed.
        changed: Ends the wait early.
    """
    wake = changed or asyncio.Event()
    while True:
        wake.clear()
        try:
            more = await step()
        except Exception:  # noqa: BLE001 - whatever it is, the server lives on and the next step may do
            _log.exception("background_failed", work=step.__qualname__)
            more = False
            wake.clear()
        if not more:
            with suppress(TimeoutError):
                async with asyncio.timeout(poll_seconds):
                    await wake.wait()
            await asyncio.sleep(_LEAST_SECONDS)
