"""Whether anybody still waits for some work, and the part of it that ends when nobody does."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

_Result = TypeVar("_Result")


class AbandonedError(Exception):
    """Nobody waits for the work any more, so it was ended."""


class Interest:
    """That of a caller in work that runs in a task of its own, most of which goes on to its end in any case."""

    def __init__(self) -> None:
        self._lost = False
        self._part: asyncio.Future[Any] | None = None

    def lose(self) -> None:
        """Say that nobody waits any more."""
        self._lost = True
        if self._part is not None:
            self._part.cancel()

    async def during(self, part: Coroutine[Any, Any, _Result]) -> _Result:
        """Do a part of the work for as long as somebody waits.

        Raises:
            AbandonedError: Nobody does.
        """
        doing = asyncio.ensure_future(part)
        if self._lost:
            doing.cancel()
        self._part = doing
        try:
            return await doing
        except asyncio.CancelledError:
            if self._lost:
                raise AbandonedError from None
            raise
        finally:
            self._part = None
