"""How a process of ours begins and ends."""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
from typing import Protocol


class StartError(Exception):
    """The process cannot start. Its text is one line with the way out."""


class Process(Protocol):
    """What runs until it is told to stop."""

    async def start(self) -> str:
        """Begin, and return the line that says so.

        Raises:
            StartError: It cannot; nothing is left open.
        """
        ...

    async def ended(self) -> None:
        """Return when it cannot go on by itself."""
        ...

    async def stop(self) -> None:
        """End in order; raises what kept it from going on."""
        ...


async def run(process: Process) -> None:
    """Run a process until SIGTERM or SIGINT.

    Raises:
        StartError: It cannot start.
    """
    told_to_stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told_to_stop.set)
    ready = await process.start()
    # What is there by now stays. To look all of it over for garbage, again and again, would each time hold everybody up
    # for a quarter of a second.
    gc.collect()
    gc.freeze()
    sys.stdout.write(f"{ready}\n")
    sys.stdout.flush()
    waits = [asyncio.ensure_future(told_to_stop.wait()), asyncio.ensure_future(process.ended())]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    await process.stop()
