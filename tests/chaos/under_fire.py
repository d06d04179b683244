"""A process under fire: the product, with a fuse at a named point, and a journal of what it wrote under a fence.

Nothing of this is in the product: its methods are wrapped here, in this process, before it starts.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import ContextVar
from functools import wraps
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeAlias

from sqlalchemy.ext.asyncio import AsyncConnection

from profile_export.cli import main
from profile_export.domain.job import JobState, Progress
from profile_export.engines.duckdb.engine import DuckDbEngine, EngineAttempt
from profile_export.lake.local import LocalLake
from profile_export.store.db.database import Database, uninterruptible
from profile_export.store.files.batches import Receipts
from profile_export.store.files.folders import DroppedFolders
from profile_export.store.jobs.attempts import Attempts, Fence
from profile_export.store.jobs.expiries import Timeouts
from profile_export.store.jobs.jobs import Jobs
from tests.chaos.points import Fuse, How, Needs

VALUES_PER_RANGE = 1_500
"""So that a job of a few hundred rows has several ranges."""

# What the transaction that runs belongs to.
_doing: ContextVar[str] = ContextVar("doing", default="")
_Method: TypeAlias = Callable[..., Awaitable[Any]]


def be(
    words: Sequence[str], variables: Mapping[str, str], told: Connection, folder: Path, fuse: Fuse | None
) -> None:
    """Be `profile-export` with these words; what it prints is told, what it logs is in the folder."""
    log = os.open(folder / f"{os.getpid()}.log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(told.fileno(), 1)
    os.dup2(log, 2)
    os.environ.clear()
    os.environ.update(variables)
    put_under_fire(fuse, folder / "journal")
    sys.argv = ["profile-export", *words]
    main()


def put_under_fire(fuse: Fuse | None, journal: Path) -> None:
    reach = _Burning(fuse).reach
    writes = _Journal(journal)
    cut_finely()
    for name, doing in _FENCED.items():
        _wrap(Attempts, name, doing, reach, writes)
    for owner, name, doing in _WATCHED:
        _wrap(owner, name, doing, reach)
    for name in ("heartbeat", "state_of"):
        _wrap_look(name, reach)
    for name in ("write", "write_beside"):
        _wrap_transaction(name, reach)
    for name, doing in (("write", "write a receipt"), ("keep_only", "tidy up"), ("remove", "remove")):
        _wrap_lake(name, doing, reach)
    if fuse and fuse.needs is Needs.ITS_ENGINE_TO_CRASH:
        _crash_engines()


_FENCED: Mapping[str, str] = {
    "begin_phase": "begin",
    "record_range": "record a range",
    "commit": "commit",
    "end_with_error": "end in error",
    "let_go": "let go",
    "release": "release",
    "heartbeat": "beat",
}
_WATCHED: Sequence[tuple[type, str, str]] = (
    (Attempts, "claim", "claim"),
    (EngineAttempt, "resolve", "resolving"),
    (EngineAttempt, "run", "writing a range"),
    (Receipts, "note_written", "note a receipt"),
    (Jobs, "create", "create"),
    (Jobs, "cancel", "cancel"),
    (Timeouts, "_end", "lapse"),
    (DroppedFolders, "forget", "forget what was swept"),
)


class _Burning:
    """A fuse that burns once."""

    def __init__(self, fuse: Fuse | None) -> None:
        self._fuse = fuse

    def reach(self, point: str) -> None:
        if self._fuse is None or self._fuse.point != point:
            return
        how, self._fuse = self._fuse.how, None
        os.write(1, f"reached {point}\n".encode())
        os.kill(os.getpid(), signal.SIGKILL if how is How.KILL else signal.SIGSTOP)


class _Journal:
    """What was written under a fence, when it began and what came of it; one line each, of all processes."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)

    def note(self, doing: str, fence: Fence, began: float, outcome: str) -> None:
        line = {"doing": doing, "job": fence.job_id, "attempt": fence.attempt, "worker": fence.worker}
        os.write(self._file, (json.dumps({**line, "began": began, "outcome": outcome}) + "\n").encode())


_Reach: TypeAlias = Callable[[str], None]


def _wrap(owner: type, name: str, doing: str, reach: _Reach, journal: _Journal | None = None) -> None:
    method: _Method = getattr(owner, name)
    # What runs to its end whatever becomes of its caller is to be watched to that end.
    runs_to_its_end = hasattr(method, "__wrapped__")
    inner: _Method = getattr(method, "__wrapped__", method)

    @wraps(inner)
    async def watched(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        what = _named(doing, args)
        reach(f"before {what}")
        began = time.time()
        token = _doing.set(what)
        outcome = "accepted"
        try:
            result = await inner(self, *args, **kwargs)
        except BaseException as error:
            outcome = type(error).__name__
            raise
        finally:
            _doing.reset(token)
            if journal:
                journal.note(what, args[0], began, outcome)
        reach(f"after {what}")
        return result

    setattr(owner, name, uninterruptible(watched) if runs_to_its_end else watched)


def _named(doing: str, args: Sequence[Any]) -> str:
    return f"begin {args[1].phase}" if doing == "begin" and isinstance(args[1], Progress) else doing


def _wrap_look(name: str, reach: _Reach) -> None:
    look: _Method = getattr(Attempts, name)

    async def watched(self: Any, fence: Fence, *args: Any) -> Any:
        state = await look(self, fence, *args)
        if state is JobState.CANCELLING:
            reach("after see a cancel")
        return state

    setattr(Attempts, name, watched)


def _wrap_transaction(name: str, reach: _Reach) -> None:
    begin: Callable[[Database], AbstractAsyncContextManager[AsyncConnection]] = getattr(Database, name)

    @asynccontextmanager
    async def watched(self: Database) -> AsyncIterator[AsyncConnection]:
        async with begin(self) as connection:
            yield connection
            if doing := _doing.get():
                reach(f"inside {doing}")

    setattr(Database, name, watched)


def _wrap_lake(name: str, doing: str, reach: _Reach) -> None:
    method: Callable[..., None] = getattr(LocalLake, name)

    def watched(self: LocalLake, *args: Any) -> None:
        reach(f"before {doing}")
        method(self, *args)
        reach(f"after {doing}")

    setattr(LocalLake, name, watched)


def cut_finely() -> None:
    setattr(DuckDbEngine, "values_per_range", property(lambda _: VALUES_PER_RANGE))  # noqa: B010 - typed as read-only


def _crash_engines() -> None:
    """Have the engine die under the first range of an attempt."""
    run = EngineAttempt.run

    async def crashing(self: EngineAttempt, *args: Any) -> Any:
        os.kill(self.process_id, signal.SIGKILL)
        return await run(self, *args)

    setattr(EngineAttempt, "run", crashing)  # noqa: B010 - a method is not to be assigned to
