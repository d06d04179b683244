"""A data directory without a server: uploads, merges, sweeps and exports, one at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest_asyncio
from sqlalchemy import update

from profile_export.domain.catalog.batches import (
    BatchState,
    DataFile,
    IngestedFile,
    NamespaceUse,
    UploadStart,
)
from profile_export.domain.catalog.datasets import IdentityField, NewDataset, SchemaRef, Tenant
from profile_export.domain.export.plan import ExportPlan, plan_export
from profile_export.domain.export.request import BoundRequest, EventList, ExportRequest
from profile_export.domain.merging.policy import BUILT_IN_POLICY, IdentityGraph
from profile_export.engines.duckdb.session import DuckDbSession
from profile_export.ingest.ingestion import ingest
from profile_export.lake.compaction import Merger
from profile_export.lake.local import LocalLake
from profile_export.processes.supervisor import Pool, Supervisor
from profile_export.runner.chores import Compactor, Sweeper
from profile_export.store.catalog.datasets import Catalog
from profile_export.store.db.database import Database
from profile_export.store.db.tables import batches
from profile_export.store.files.folders import DroppedFolders
from profile_export.store.files.snapshots import Compactions, Snapshots
from profile_export.store.files.uploads import Uploads
from profile_export.store.jobs.attempts import Attempts
from profile_export.store.jobs.jobs import Jobs
from tests.builders import read_export
from tests.contract.ingesting import CRM, Uploader
from tests.contract.test_engine_against_merge import lines
from tests.databases import Place

TENANT = Tenant()
XDM = "https://ns.adobe.com/xdm/context"
RECORD, EVENT, UNION = (
    SchemaRef(f"{XDM}/{name}") for name in ("profile", "experienceevent", "profile__union")
)
EMAIL = IdentityField(("email",), "Email")
NO_GRACE = timedelta()


@dataclass
class House:
    """A data directory with what compacts it, a step at a time."""

    folder: Path
    children: Pool
    place: Place | None = None
    """Where the store is, if not in the folder."""

    def __post_init__(self) -> None:
        self.database = Database(self.place or self.folder)
        self.lake, self.wakeups = LocalLake(self.folder), self.database.wakeups
        self.numbers = count()
        self.when_named: Callable[[], None] = lambda: None
        self.catalog = Catalog(self.database)
        self.uploads = Uploads(self.database)
        self.jobs, self.attempts = Jobs(self.database), Attempts(self.database)
        self.snapshots = Snapshots(self.database)
        self.compactions, self.dropped = Compactions(self.database), DroppedFolders(self.database)
        self.compactor = Compactor(self.compactions, self.lake, Merger(self.children), self.new_id)

    def new_id(self) -> str:
        self.when_named()
        return f"{next(self.numbers):024x}"

    async def dataset(self, schema: SchemaRef = RECORD) -> str:
        identities = (CRM, EMAIL) if schema is RECORD else ()
        new = NewDataset("d", "", schema, {}, identities)
        return (await self.catalog.create_dataset(TENANT, new, self.new_id(), ""))[0].id

    async def upload(self, dataset_id: str, batch_id: str, *sent: dict[str, Any]) -> str:
        """Upload a batch; return its folder."""
        folder = f"{dataset_id}/{batch_id}"
        dataset = await self.catalog.get_dataset(TENANT, dataset_id)
        start = UploadStart(dataset_id, batch_id, "1", "json_lines")
        await self.uploads.open_upload(TENANT, start, folder, staged_as=batch_id)
        uploader = Uploader(self.folder)
        task = uploader.task(list(sent), *dataset.identity_fields, kind=dataset.kind, known=dataset.fields)
        result = ingest(replace(task, batch_id=batch_id, folder=self.lake.staging(folder)))
        found = tuple(
            DataFile(file.name, f"{folder}/{file.name}", file.rows, file.bytes, file.sha256)
            for file in result.files
        )
        none = NamespaceUse()
        facts = IngestedFile(folder, found, 0, result.rows, result.fields, none, none, (), "", 0)
        await self.uploads.commit_batch(TENANT, batch_id, {"1": facts})
        return folder

    async def people(self, dataset_id: str, *numbers: int) -> None:
        """Upload batches of one person each, in one dataset the same fields."""
        for number in numbers:
            person = {"crmId": f"C{number}", "email": f"e{number // 2}", "name": f"n{number}"}
            await self.upload(dataset_id, f"p{number}", person)

    async def compact(self) -> int:
        """Merge until everything lies well; return how many merges it took."""
        merges = 0
        while await self.compactor.step():
            merges += 1
        return merges

    async def ended(self, batch_id: str, state: BatchState) -> None:
        """End a batch that had succeeded, as a revert or an expiry does."""
        async with self.database.write() as connection:
            await connection.execute(
                update(batches).where(batches.c.id == batch_id).values(state=state.value)
            )

    async def sweep(self, grace: timedelta = NO_GRACE) -> None:
        await Sweeper(self.dropped, self.lake, grace).step()

    async def plan(self, graph: IdentityGraph = IdentityGraph.PDG) -> ExportPlan:
        request = ExportRequest("destination", event_list=EventList())
        bound = BoundRequest(request, replace(BUILT_IN_POLICY, graph=graph))
        return plan_export(bound, await self.snapshots.take(TENANT), "export")

    async def export(self, graph: IdentityGraph = IdentityGraph.PDG) -> list[str]:
        return self.run(await self.plan(graph))

    def run(self, plan: ExportPlan) -> list[str]:
        with TemporaryDirectory() as folder:
            session = DuckDbSession(plan, self.lake.root, Path(folder), {}, lambda *_: None)
            session.resolve()
            results = [session.run(key_range) for key_range in plan.ranges()]
            session.close()
            names = [file.name for result in results for file in result.files]
            return lines(read_export(Path(folder), names, plan.batch_id))

    def on_disk(self, dataset_id: str) -> set[str]:
        return {f"{dataset_id}/{folder.name}" for folder in self.lake.staging(dataset_id).iterdir()}


def pinned(plan: ExportPlan) -> list[str]:
    return [file.path for source in plan.sources for part in source.parts for file in part.files]


@asynccontextmanager
async def opened(house: House) -> AsyncIterator[House]:
    await house.database.open()
    house.lake.open()
    try:
        yield house
    finally:
        await house.database.close()
        house.lake.let_go()


@pytest_asyncio.fixture(scope="module")
async def children() -> AsyncIterator[Pool]:
    """Processes for everything that runs in one, shared by the tests of a module."""
    supervisor = Supervisor()
    yield Pool(supervisor, niceness=1)
    await supervisor.close()


@pytest_asyncio.fixture
async def house(tmp_path: Path, children: Pool) -> AsyncIterator[House]:
    """An open data directory of its own for each test."""
    async with opened(House(tmp_path, children)) as made:
        yield made
