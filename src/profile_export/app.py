"""The composition root: makes every room, wires them, runs them as one server. No logic of its own."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from profile_export.api.dataset_service import DatasetRooms, DatasetService
from profile_export.api.estimates import Estimates
from profile_export.api.export_service import ExportService
from profile_export.api.logs import configure_logs
from profile_export.api.lookups import Lookups
from profile_export.api.profile_service import ProfileService
from profile_export.api.schema_service import SchemaService
from profile_export.api.server import BindError, GrpcServer, contract, create_server
from profile_export.api.watch import Watches
from profile_export.config import ServeSettings, SettingsError, load
from profile_export.domain.verification import Verification
from profile_export.engines.duckdb_engine import DuckDbEngine
from profile_export.engines.mappings import Mappings
from profile_export.ingest.ingestion import ingest
from profile_export.ingest.loading import Loading, LoadingRooms, RowLimits
from profile_export.ingest.registration import Registration
from profile_export.ingest.sessions import UploadSessions
from profile_export.lake import verification
from profile_export.lake.children import Children
from profile_export.lake.iceberg import IcebergMirror
from profile_export.lake.local import LocalLake
from profile_export.runner.compactor import Compactor
from profile_export.runner.expiries import ExpirySweeper
from profile_export.runner.lapses import LapseSweeper
from profile_export.runner.mirror import Mirror
from profile_export.runner.ports import Engine
from profile_export.runner.receipts import ReceiptWriter
from profile_export.runner.sweep import Sweeper
from profile_export.runner.worker import Worker
from profile_export.store.attempts import Attempts
from profile_export.store.batches import Batches
from profile_export.store.catalog import Catalog
from profile_export.store.compactions import Compactions
from profile_export.store.database import Database
from profile_export.store.drops import Drops
from profile_export.store.events import Wakeups
from profile_export.store.expiries import Expiries
from profile_export.store.jobs import Jobs
from profile_export.store.lapses import Lapses
from profile_export.store.loading import LoadingBatches
from profile_export.store.mirror_status import MirrorStatuses
from profile_export.store.mirrors import Mirrors
from profile_export.store.notices import Notices
from profile_export.store.opening import CannotOpenError
from profile_export.store.policies import Policies
from profile_export.store.receipts import Receipts
from profile_export.store.schemas import Schemas
from profile_export.store.snapshots import Snapshots
from profile_export.store.uploads import Uploads

_STAND_BACK = 10
"""The niceness of what can wait: an upload or an export gets ten times its processor time."""


class StartError(Exception):
    """The server cannot start. Its text is one line with the way out."""


def serve(options: Mapping[str, str | bool | None]) -> None:
    """Run a server until SIGTERM or SIGINT; prints `listening on HOST:PORT` when it answers.

    Args:
        options: As `config.load` takes them; variables come from the environment.

    Raises:
        StartError: A setting, the address or the database cannot be used.
    """
    try:
        settings = load(options, os.environ)
    except SettingsError as error:
        raise StartError(str(error)) from error
    configure_logs(settings.log_level)
    asyncio.run(_serve(settings))


def verify(receipt: Path) -> Verification:
    """Check a receipt against the files beside it, as `lake.verification` does; no server is needed."""
    return verification.verify(receipt)


async def _serve(settings: ServeSettings) -> None:
    told_to_stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told_to_stop.set)
    try:
        application = Application(settings)
    except CannotOpenError as error:
        raise StartError(str(error)) from error
    await application.start()
    host = settings.grpc_address[0]
    shown = f"[{host}]" if ":" in host else host
    sys.stdout.write(f"listening on {shown}:{application.port}\n")
    sys.stdout.flush()
    await asyncio.wait(
        [asyncio.ensure_future(told_to_stop.wait()), *application.workers],
        return_when=asyncio.FIRST_COMPLETED,
    )
    await application.stop()


class Application:
    """One server with its runner, engine, store and lake. Tests may give it another engine or lake."""

    def __init__(
        self, settings: ServeSettings, engine: Engine | None = None, lake: LocalLake | None = None
    ) -> None:
        self._settings = settings
        self._database = Database(settings.database_url or settings.data_dir)
        self._lake = lake or LocalLake(settings.data_dir)
        self._duckdb = DuckDbEngine(settings.memory_limit_mb, settings.threads, max(1, settings.workers))
        self._ingesting = Children(warm_for=ingest)
        self._compacting = Children(niceness=_STAND_BACK)
        wakeups = Wakeups()
        self._notices = [Notices(settings.database_url, wakeups)] if settings.database_url else []
        self._batches = Batches(self._database, wakeups)
        attempts = Attempts(self._database, wakeups)
        catalog, policies = Catalog(self._database), Policies(self._database)
        schemas, uploads = Schemas(self._database), Uploads(self._database)
        opened, receipts = LoadingBatches(self._database, wakeups), Receipts(self._database)
        self._receipts = ReceiptWriter(receipts, self._lake)
        jobs = Jobs(self._database, wakeups, settings.job_retention)
        self._watches = Watches(jobs, wakeups, lambda: datetime.now(UTC))
        limits = RowLimits(settings.max_record_bytes, settings.max_event_bytes)
        rooms = LoadingRooms(catalog, schemas, uploads, opened, self._lake, self._ingesting)
        self._loading = Loading(rooms, limits, _new_id)
        sessions = UploadSessions(uploads, self._loading, _new_id)
        snapshots, runs = Snapshots(self._database), engine or self._duckdb
        estimates = Estimates(snapshots, runs, self._lake, _new_id)
        mappings = Mappings(self._duckdb, self._lake.root, self._lake.folder("mappings"), _new_id)
        lookups = Lookups(snapshots, mappings, self._lake.root)
        self._services = contract(
            datasets=DatasetService(
                DatasetRooms(
                    catalog,
                    self._batches,
                    opened,
                    receipts,
                    MirrorStatuses(self._database),
                    sessions,
                    self._loading,
                    self._lake,
                ),
                _new_id,
            ),
            schemas=SchemaService(catalog, schemas, Registration(schemas)),
            profiles=ProfileService(policies, lookups, _new_id),
            exports=ExportService(catalog, policies, jobs, self._watches, estimates, _new_id),
        )
        name = f"{os.getpid()}-{_new_id()}"
        keep = timedelta(minutes=settings.mirror_keep_minutes)
        self._mirrors = Mirrors(self._database)
        self._mirror = Mirror(name, self._mirrors, IcebergMirror(settings.data_dir, keep), wakeups, keep)
        self._mirror_task: asyncio.Task[None] | None = None
        self._workers = [
            Worker(f"{name}-{number}", attempts, snapshots, wakeups, runs, self._lake, self._receipts)
            for number in range(settings.workers)
        ]
        self._compactions, self._drops = Compactions(self._database), Drops(self._database)
        grace = timedelta(seconds=settings.download_grace_seconds)
        self._compactor = Compactor(self._compactions, wakeups, self._lake, self._compacting, _new_id)
        self._sweeper = Sweeper(self._drops, self._lake, grace)
        self._lapses = Lapses(self._database, wakeups)
        self._lapse_sweeper = LapseSweeper(self._lapses)
        self._expiry_sweeper = ExpirySweeper(Expiries(self._database, wakeups), settings.job_retention)
        self._background: list[asyncio.Task[None]] = []
        self._working: list[asyncio.Task[None]] = []
        self._server: GrpcServer | None = None

    @property
    def port(self) -> int:
        """The port it listens on, once started."""
        if self._server is None:
            raise StartError("The server has not started.")
        return self._server.port

    @property
    def workers(self) -> Sequence[asyncio.Task[None]]:
        """The workers, once started. One ends before the server is stopped only if it cannot go on."""
        return self._working

    async def start(self) -> None:
        """Open everything, settle what a former process left, and answer calls.

        Raises:
            StartError: The address or the database cannot be used.
        """
        host, port = self._settings.grpc_address
        try:
            await self._database.open()
            self._server = await create_server(self._services, host=host, port=port, new_request_id=_new_id)
        except (CannotOpenError, BindError, OSError) as error:
            await self._close()
            raise StartError(str(error)) from error
        await asyncio.to_thread(self._lake.open)
        if not self._database.is_shared:
            # Else what is unfinished may be another server's, and leases that nobody renews expire.
            await self._lapses.lose_all()
            await self._mirrors.release_all()
            await self._sweep_what_was_left()
        await self._receipts.write_all()
        await self._duckdb.start()
        self._working = [asyncio.create_task(worker.run()) for worker in self._workers]
        self._mirror_task = asyncio.create_task(self._mirror.run())
        in_the_background = [self._compactor.run(), self._sweeper.run(), self._lapse_sweeper.run()]
        in_the_background += [self._expiry_sweeper.run()]
        in_the_background += [notices.run() for notices in self._notices]
        self._background = [asyncio.create_task(work) for work in in_the_background]
        await self._server.start()

    async def stop(self) -> None:
        """Drain: no new job, watches end, calls finish, the jobs that run are given back."""
        if self._server:
            await self._server.drain(
                stop_claiming=self._stop_workers,
                end_watches=self._watches.end_all,
                grace=timedelta(seconds=self._settings.drain_seconds),
            )
        await self._close()
        # What ended a worker that nobody told to stop ends the server too, loudly: a supervisor starts it anew.
        for ended in self._working:
            ended.result()

    async def _sweep_what_was_left(self) -> None:
        kept = {
            *await self._batches.kept_folders(),
            *await self._compactions.folders(),
            *await self._drops.folders(),
        }
        await asyncio.to_thread(self._lake.sweep, kept)
        staged = await asyncio.to_thread(self._lake.staged)
        await self._loading.clear_away(set(staged) - set(await self._batches.kept_uploads()))

    async def _close(self) -> None:
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self._duckdb.close()
        await asyncio.to_thread(self._ingesting.close)
        await asyncio.to_thread(self._compacting.kill)
        await self._database.close()

    async def _stop_workers(self) -> None:
        for worker in self._workers:
            worker.stop_claiming()
        self._mirror.stop()
        stopping = [*self._working, *([self._mirror_task] if self._mirror_task else [])]
        await asyncio.gather(*stopping, return_exceptions=True)


def _new_id() -> str:
    return secrets.token_hex(12)
