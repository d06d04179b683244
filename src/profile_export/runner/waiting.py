"""Waiting for whichever comes first."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine


async def first_of(*waits: asyncio.Future[None] | Coroutine[None, None, object], seconds: float) -> None:
    """Wait until one of these happens or the time is over. A future goes on, a coroutine is dropped."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait, task in zip(waits, tasks, strict=True):
            if wait is not task:
                task.cancel()
