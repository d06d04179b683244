"""How a process of ours begins and ends, and how its log looks."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import version
from io import TextIOBase
from typing import Any, Protocol, TextIO, cast

import grpc.aio
import structlog
from structlog.typing import EventDict, Processor

from profile_export.api.server import BindError
from profile_export.domain.errors import DomainError
from profile_export.domain.system_faults import system_fault
from profile_export.processes.plain_file import NotPlainFileError
from profile_export.store.db.transactions import CannotOpenError, explained

_OF_GRPC = "grpc._cython.cygrpc"
_EVENT_WIDTH = 16


class _LogStream(TextIOBase):
    """Stderr as a log needs it: a line is lost, and no call fails, where that cannot be written."""

    def write(self, text: str) -> int:
        """Write a line, or lose it."""
        with suppress(OSError):
            if sys.stderr is not None:
                sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        """Do nothing: stderr is written line by line."""


def configure_logs(level: str, form: str = "auto") -> None:
    """Send everything of `level` (`debug`, `info`, `warning`, `error`) and above to stderr.

    The form `json` is JSON lines, `text` lines for people, `auto` the latter if stderr is a terminal.
    """
    stream = cast("TextIO", _LogStream())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    render: Processor = structlog.processors.JSONRenderer()
    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    if form == "text" or (form == "auto" and is_terminal):
        shared.append(_without_control)
        render = structlog.dev.ConsoleRenderer(
            colors=is_terminal and not os.environ.get("NO_COLOR"), pad_event_to=_EVENT_WIDTH
        )
    number = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[*shared, render],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(stream),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, render],
        )
    )
    logging.getLogger(_OF_GRPC).addFilter(is_no_hang_up)
    # Libraries speak up from warnings on: at `info` they tell of their own steps, not of ours.
    logging.basicConfig(handlers=[handler], level=max(number, logging.WARNING), force=True)


def _without_control(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """Escape what would steer a terminal in the texts of an event, but for the lines of a traceback."""
    return {name: _printable(value) if isinstance(value, str) else value for name, value in event.items()}


def _printable(text: str) -> str:
    return "".join(
        letter if letter.isprintable() or letter == "\n" else letter.encode("unicode_escape").decode()
        for letter in text
    )


def is_no_hang_up(record: logging.LogRecord) -> bool:
    """Say of a line of gRPC's that it tells of more than an answer that its client did not wait for."""
    kind = record.exc_info[0] if record.exc_info else None
    return kind is None or not issubclass(kind, grpc.aio.BaseError)


_NO_FOLDER = "Move away what is no folder on the way there"
# A start names the place, so these say what is to be done there. All others have the way out of `system_fault`.
_WAYS_OUT_THERE = {
    errno.ENOTDIR: _NO_FOLDER,
    errno.EEXIST: _NO_FOLDER,
    errno.EISDIR: "Move the folder there away",
}
_log = structlog.get_logger(__name__)


class StartError(Exception):
    """The process cannot start. Its text is one line with the way out."""


class Process(Protocol):
    """What runs until it is told to stop."""

    async def start(self) -> str:
        """Begin, and return the line that says so; whatever it raises, nothing is left open."""
        ...

    async def ended(self) -> None:
        """Return when it cannot go on by itself."""
        ...

    async def stop(self) -> None:
        """End in order; raises what kept it from going on."""
        ...


async def run(make: Callable[[], Process], settings: Mapping[str, Any]) -> None:
    """Make a process and run it until SIGTERM or SIGINT. The log has its settings and its end.

    Raises:
        StartError: It cannot start.
    """
    told_to_stop, why = asyncio.Event(), "it could not go on"

    def stop(number: signal.Signals) -> None:
        nonlocal why
        why = number.name
        told_to_stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop, number)
    with starting():
        process = make()
        ready = await process.start()
    # The objects that exist by now stay. The garbage collector would hold up every call for a quarter of a second each
    # time it looks them over.
    gc.collect()
    gc.freeze()
    _log.info(
        "started", version=version("profile-export"), ready=ready, process_id=os.getpid(), settings=settings
    )
    # Where standard output is closed, this writes nothing.
    print(ready, flush=True)  # noqa: T201 - it is for whoever started the process
    waits = [asyncio.ensure_future(told_to_stop.wait()), asyncio.ensure_future(process.ended())]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    _log.info("stopping", why=why)
    try:
        await process.stop()
    finally:
        _log.info("stopped", why=why)


@contextmanager
def starting() -> Iterator[None]:
    """Be the one boundary of what keeps a process from starting: one sentence, and the rest in the log on request.

    Raises:
        StartError: Instead of whatever is raised.
    """
    try:
        yield
    except Exception as error:
        _log.debug("start_failed", exc_info=error)
        if isinstance(error, StartError):
            raise
        raise StartError(_sentence(error)) from error


def _sentence(error: Exception) -> str:
    """Say what kept a process from starting, and what to do; never with a text that may hold what is secret."""
    if isinstance(error, DomainError):
        return error.message
    if isinstance(error, CannotOpenError | BindError):
        return str(error)
    if sentence := explained(error):
        return sentence
    if isinstance(error, NotPlainFileError):
        return f"{error.filename} is no plain file: move away what is there, then start again."
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        fault = system_fault(error)
        general = fault.way_out if fault else "See that it can be read and written"
        way_out = _WAYS_OUT_THERE.get(error.errno or 0, general)
        return f"{place}{error.strerror}. {way_out}, then start again."
    return f"The start failed with {type(error).__name__}: --log-level debug shows the rest."
