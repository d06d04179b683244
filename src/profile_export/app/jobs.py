"""What runs jobs, in a server or in a worker process: workers with their engine, over a store and a lake."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Callable, Coroutine, Mapping
from functools import partial

from profile_export.app.processes import StartError
from profile_export.application.ports import Engine, Lake
from profile_export.config import WorkSettings
from profile_export.engines.duckdb.engine import DuckDbEngine
from profile_export.lake.local import LocalLake
from profile_export.processes.supervisor import Supervisor
from profile_export.processes.turns import compute
from profile_export.runner.belonging import (
    Belonging,
    ForeignLakeError,
    LakeInUseError,
    LakeMissingError,
)
from profile_export.runner.chores import TimeoutChore, keep_at
from profile_export.runner.keeper import LeaseKeeper
from profile_export.runner.worker import Places, ReceiptWriter, Worker
from profile_export.store.db.columns import make_codecs
from profile_export.store.db.database import Database, Instance, Instances
from profile_export.store.db.tables import metadata
from profile_export.store.db.transactions import StoreMissingError
from profile_export.store.db.wakeups import Notices
from profile_export.store.files.batches import Receipts
from profile_export.store.files.folders import Named
from profile_export.store.files.snapshots import Snapshots
from profile_export.store.jobs.attempts import Attempts, Renewals
from profile_export.store.jobs.expiries import Timeouts

_KEY_BYTES = 32


class JobRunner:
    """Workers, their engine, and the look-out for timeouts. Tests may give it another engine or lake.

    Raises:
        CannotOpenError: The driver of the database is not installed.
    """

    def __init__(
        self, settings: WorkSettings, engine: Engine | None = None, lake: Lake | None = None
    ) -> None:
        self.name = f"{os.getpid()}-{new_id()}"
        self.supervisor = Supervisor()
        self.database = Database(settings.url or settings.data_dir)
        notices = [Notices(settings.url, self.database.wakeups)] if settings.url else []
        self.lake: Lake = lake or LocalLake(settings.data_dir)
        self.instances = Instances(self.database)
        self._belonging = Belonging(
            self.instances, Named(self.database), self.lake, adopt=settings.adopt_lake
        )
        # Two may look people up, or estimate, where no job is run; and a child takes a second to begin.
        warm = max(1, settings.workers) + 1
        self.duckdb = DuckDbEngine(settings.memory_limit_mb, settings.threads, warm, self.supervisor)
        first = engine or self.duckdb
        self.engines: Mapping[str, Engine] = {first.name: first}
        self.snapshots = Snapshots(self.database)
        self.receipts = Receipts(self.database)
        self.timeouts = Timeouts(self.database)
        self._receipt_writer = ReceiptWriter(self.receipts, self.lake)
        self._keeper = LeaseKeeper(Renewals(self.database))
        attempts = Attempts(self.database, settings.quotas)
        places = Places(attempts, settings.workers)
        self._workers = [
            Worker(
                f"{self.name}-{number}",
                places,
                attempts,
                self._keeper,
                self.snapshots,
                self.database.wakeups,
                self.engines,
                self.lake,
                self._receipt_writer,
            )
            for number in range(places.number)
        ]
        self._beside: list[Callable[[], Coroutine[None, None, None]]] = [
            partial(keep_at, TimeoutChore(self.timeouts, self._keeper)),
            *(one.run for one in notices),
        ]
        self._working: list[asyncio.Task[None]] = []
        self._background: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        """Open the store and the lake, if they belong together.

        Raises:
            StartError: The database is not that of the lake.
            CannotOpenError: The database cannot be used.
        """
        try:
            await self.database.open(may_make=await self._belonging.may_make_store())
            await self._belonging.settle(Instance(new_id(), secrets.token_bytes(_KEY_BYTES)))
        except (StoreMissingError, ForeignLakeError) as error:
            message = (
                f"The database does not know the files in {self.lake}. Restore the database that they are of, or "
                "name it with --database-url; or start with --adopt-lake (PROFILE_EXPORT_ADOPT_LAKE=true), which moves "
                "what the database does not know to the trash."
            )
            raise StartError(message) from error
        except LakeMissingError as error:
            message = (
                f"{self.lake} has none of the files that the database names. Mount or restore it, or name its "
                "folder with --data-dir; or, where they are gone for good, start with --adopt-lake "
                "(PROFILE_EXPORT_ADOPT_LAKE=true), and revert what is lost."
            )
            raise StartError(message) from error
        except LakeInUseError as error:
            message = (
                f"A server or worker of another database uses {self.lake}: stop it before --adopt-lake, "
                "or name the database that the files are of."
            )
            raise StartError(message) from error
        await asyncio.to_thread(self.lake.open)

    async def start(self) -> None:
        """Begin to run jobs."""
        await self._receipt_writer.write_all()
        # The first takes long for want of a processor, the second while the child process begins.
        await asyncio.gather(self.duckdb.start(), compute(make_codecs, metadata))
        self._working = [asyncio.create_task(worker.run()) for worker in self._workers]
        for work in self._beside:
            self.run_beside(work())

    def run_beside(self, work: Coroutine[None, None, None]) -> None:
        """Run something in the background until `close`."""
        self._background.append(asyncio.create_task(work))

    async def ended(self) -> None:
        """Return when a worker cannot go on; never where there are none."""
        if self._working:
            await asyncio.wait(self._working, return_when=asyncio.FIRST_COMPLETED)
        else:
            await asyncio.Event().wait()

    async def stop_working(self) -> None:
        """Take no further job, and give those that run back."""
        for worker in self._workers:
            worker.stop_claiming()
        await asyncio.gather(*self._working, return_exceptions=True)

    async def end_background(self) -> None:
        """End what runs in the background."""
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)

    async def close(self) -> None:
        """End what still runs, the engine and the store."""
        await self.end_background()
        await self.duckdb.close()
        await self.supervisor.close()
        await asyncio.to_thread(self._keeper.close)
        await self.database.close()
        self.lake.let_go()

    def raise_what_ended_it(self) -> None:
        """Raise what ended a worker that nobody told to stop: loudly, so that a supervisor starts the process anew."""
        for worker in self._working:
            worker.result()


def new_id() -> str:
    """Make an id that nobody can guess, and nobody else makes."""
    return secrets.token_hex(12)


class WorkerProcess:
    """One worker process: `workers` jobs at once, and one more of a tenant that runs none."""

    def __init__(self, settings: WorkSettings) -> None:
        self._jobs = JobRunner(settings)

    async def start(self) -> str:
        """Open everything and begin to run jobs; whatever it raises, nothing is left open."""
        try:
            await self._jobs.open()
            await self._jobs.start()
        except Exception:
            await self._jobs.close()
            raise
        return "working"

    async def ended(self) -> None:
        """Return when a worker cannot go on."""
        await self._jobs.ended()

    async def stop(self) -> None:
        """Give the jobs that run back, and end."""
        await self._jobs.stop_working()
        await self._jobs.close()
        self._jobs.raise_what_ended_it()
