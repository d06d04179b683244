"""A server: it answers calls, runs jobs, and keeps the house."""

from __future__ import annotations

import asyncio
import os
from datetime import UTC, datetime, timedelta

from profile_export.api.convert.jobs import GrpcFeedEncoder, GrpcJobEncoder
from profile_export.api.convert.lists import Pages
from profile_export.api.dataset_service import DatasetService
from profile_export.api.export_service import ExportService
from profile_export.api.profile_service import ProfileService
from profile_export.api.schema_service import SchemaService
from profile_export.api.server import GrpcServer, contract, create_server
from profile_export.app.jobs import JobRunner, new_id
from profile_export.app.processes import StartError
from profile_export.application.batches import BatchUseCases
from profile_export.application.datasets import DatasetUseCases
from profile_export.application.doors import Streams
from profile_export.application.identity_graphs import IdentityGraphs
from profile_export.application.jobs import Estimates, JobUseCases
from profile_export.application.loading import Loading, RowLimits
from profile_export.application.policies import PolicyUseCases
from profile_export.application.ports import Engine, Lake
from profile_export.application.profiles import ProfileUseCases
from profile_export.application.schemas import SchemaUseCases
from profile_export.application.uploads import UploadSessions
from profile_export.application.watch.job_feed import FeedWatches
from profile_export.application.watch.job_log import JobWatches
from profile_export.application.watch.watchers import Watchers
from profile_export.config import ServeSettings
from profile_export.ingest.ingestion import ingest
from profile_export.ingest.task import Expense
from profile_export.lake.compaction import Merger
from profile_export.lake.mirror import MirrorTables
from profile_export.processes.messages import Limits
from profile_export.processes.supervisor import Pool
from profile_export.runner.chores import (
    Compactor,
    ExpiryChore,
    StaleUploadChore,
    Sweeper,
    keep_at,
    repeat,
)
from profile_export.runner.leftovers import Leftovers, StoreAndLake
from profile_export.runner.mirror import Mirror
from profile_export.store.catalog.datasets import Catalog
from profile_export.store.catalog.policies import Policies
from profile_export.store.catalog.schemas import Schemas
from profile_export.store.files.batches import Batches
from profile_export.store.files.folders import DroppedFolders, Named
from profile_export.store.files.mirrors import Mirrors
from profile_export.store.files.snapshots import Compactions
from profile_export.store.files.uploads import Uploads
from profile_export.store.jobs.changes import Changes
from profile_export.store.jobs.expiries import Expiries
from profile_export.store.jobs.jobs import Jobs

_COMMIT_SECONDS = 2.0
"""How long the mirror may take to end a commit that is under way."""
_LEAST_INGEST_PROCESSES = 2
"""So that one tenant's slow file does not keep another's waiting."""
_MEGABYTE = 1_000_000
_CHORE_SECONDS = 3_600
"""How long one merge, or one change of an Iceberg table, may take by the clock."""
_COMPACT_CPU_SECONDS = 900
"""A hundred files of 9,000 columns take half of it. That of a table grows with it, so it has no such limit."""
_STAND_BACK = 10
"""The niceness of what can wait: an upload or an export gets ten times its processor time."""


def _now() -> datetime:
    return datetime.now(UTC)


class Application:
    """One server with its runner, engine, store and lake. Tests may give it another engine or lake."""

    def __init__(
        self, settings: ServeSettings, engine: Engine | None = None, lake: Lake | None = None
    ) -> None:
        self._settings = settings
        self._jobs = JobRunner(settings, engine, lake)
        self._database, self._lake = self._jobs.database, self._jobs.lake
        wakeups = self._database.wakeups
        snapshots, receipts, engines = self._jobs.snapshots, self._jobs.receipts, self._jobs.engines
        supervisor = self._jobs.supervisor
        self._ingesting = Pool(
            supervisor,
            most=settings.ingest_processes or max(_LEAST_INGEST_PROCESSES, os.cpu_count() or 1),
            warm_for=ingest,
        )
        memory_bytes = settings.child_memory_mb * _MEGABYTE
        compacting = Pool(
            supervisor,
            niceness=_STAND_BACK,
            limits=Limits(_CHORE_SECONDS, _COMPACT_CPU_SECONDS, memory_bytes),
        )
        self._mirroring = Pool(
            supervisor, niceness=_STAND_BACK, limits=Limits(_CHORE_SECONDS, memory_bytes=memory_bytes)
        )
        self._mirrors, batches = Mirrors(self._database), Batches(self._database)
        grace = timedelta(seconds=settings.download_grace_seconds)
        catalog, policies = Catalog(self._database, settings.quotas, grace), Policies(self._database)
        schemas, uploads = Schemas(self._database), Uploads(self._database, settings.quotas)
        jobs = Jobs(self._database, settings.job_retention, settings.quotas)
        changes = Changes(self._database, settings.job_retention)
        self._watchers = Watchers(settings.quotas.watches)
        limits = RowLimits(settings.max_record_bytes, settings.max_event_bytes)
        expense = Expense(
            settings.ingest_cpu_seconds, settings.ingest_cpu_seconds_per_mib, settings.child_memory_mb
        )
        loading = Loading(catalog, schemas, uploads, self._lake, self._ingesting, limits, expense, new_id)
        sessions = UploadSessions(uploads, loading, new_id)
        estimates = Estimates(snapshots, engines, self._lake, new_id)
        graphs = IdentityGraphs(next(iter(engines.values())), self._lake, new_id)
        lookups = ProfileUseCases(snapshots, policies, graphs, self._lake)
        pages = Pages(self._jobs.instances.token_key)
        datasets = DatasetUseCases(catalog, self._mirrors, batches, self._lake, new_id)
        transfers = Streams("transfers", settings.quotas.transfers, "Wait until some have ended.")
        self._services = contract(
            datasets=DatasetService(
                datasets,
                BatchUseCases(batches, uploads, receipts, sessions, loading, self._lake, new_id),
                transfers,
                pages,
                timedelta(minutes=settings.upload_idle_minutes),
            ),
            schemas=SchemaService(SchemaUseCases(schemas, self._ingesting, expense), datasets, pages),
            profiles=ProfileService(PolicyUseCases(policies, new_id), lookups, pages),
            exports=ExportService(
                JobUseCases(catalog, policies, jobs, estimates, tuple(engines), new_id),
                JobWatches(self._watchers, jobs, wakeups, GrpcJobEncoder(), _now),
                FeedWatches(self._watchers, changes, wakeups, GrpcFeedEncoder(), _now),
                pages,
            ),
        )
        keep = timedelta(minutes=settings.mirror_keep_minutes)
        tables = MirrorTables(settings.data_dir, keep, settings.url)
        self._mirror = Mirror(self._jobs.name, self._mirrors, tables, self._mirroring, self._lake, keep)
        self._mirror_task: asyncio.Task[None] | None = None
        compactions, dropped = Compactions(self._database), DroppedFolders(self._database)
        self._compactor = Compactor(compactions, self._lake, Merger(compacting), new_id)
        expiries = Expiries(self._database)
        self._chores = (
            Sweeper(dropped, self._lake, grace),
            ExpiryChore(expiries, changes, settings.job_retention, settings.watch_history),
            StaleUploadChore(expiries, loading, timedelta(hours=settings.upload_expiry_hours)),
        )
        both = StoreAndLake(self._jobs.instances, Named(self._database), compactions, dropped, self._lake)
        self._leftovers = Leftovers(both, loading, timedelta(days=settings.trash_days))
        self._server: GrpcServer | None = None

    @property
    def port(self) -> int:
        """The port it listens on, once started."""
        if self._server is None:
            raise StartError("The server has not started.")
        return self._server.port

    async def start(self) -> str:
        """Open everything, settle what a former process left, and answer calls; return the line that says where.

        Whatever it raises, nothing is left open.
        """
        host, port = self._settings.grpc_address
        try:
            await self._open(host, port)
        except Exception:
            if self._server:
                await self._server.give_up()
            await self._stop_working()
            await self._close()
            raise
        shown = f"[{host}]" if ":" in host else host
        return f"listening on {shown}:{self.port}"

    async def _open(self, host: str, port: int) -> None:
        await self._jobs.open()
        self._server = await create_server(
            self._services,
            host=host,
            port=port,
            connection_age=timedelta(seconds=self._settings.connection_age_seconds),
            new_request_id=new_id,
        )
        if self._database.is_shared:
            # Another process may be at work on what is unfinished; the leases of a dead process expire by themselves.
            self._jobs.run_beside(keep_at(self._leftovers))
        else:
            await self._jobs.timeouts.lose_all()
            await self._mirrors.release_all()
            await self._leftovers.clear(timedelta(0))
            self._jobs.run_beside(repeat(self._leftovers.empty_trash, poll_seconds=Leftovers.poll_seconds))
        self._ingesting.warm()
        await self._jobs.start()
        self._mirror_task = asyncio.create_task(
            keep_at(self._mirror, self._database.wakeups, until=self._mirror.stopping)
        )
        self._jobs.run_beside(keep_at(self._compactor, self._database.wakeups))
        for chore in self._chores:
            self._jobs.run_beside(keep_at(chore))
        await self._server.start()

    async def ended(self) -> None:
        """Return when a worker cannot go on."""
        await self._jobs.ended()

    async def stop(self) -> None:
        """Drain: no new job, watches end, calls finish, the jobs that run are given back."""
        if self._server:
            await self._server.drain(
                stop_claiming=self._stop_working,
                end_watches=self._watchers.end_all,
                grace=timedelta(seconds=self._settings.drain_seconds),
            )
        await self._close()
        self._jobs.raise_what_ended_it()

    async def _close(self) -> None:
        await self._jobs.end_background()
        await self._jobs.close()

    async def _stop_working(self) -> None:
        self._mirror.stopping.set()
        await self._jobs.stop_working()
        if self._mirror_task:
            # A rebuild may take long, and whatever is cut off is decided anew.
            await asyncio.wait([self._mirror_task], timeout=_COMMIT_SECONDS)
            await self._mirroring.close()
            await self._mirror_task
