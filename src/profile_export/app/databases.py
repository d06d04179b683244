"""What an operator asks of a store and its lake without a server: how they stand, and whether they agree."""

from __future__ import annotations

from dataclasses import dataclass

from profile_export.app.processes import StartError, starting
from profile_export.config import StoreSettings
from profile_export.lake.local import LocalLake
from profile_export.runner.leftovers import Findings, StoreAndLake, check_up
from profile_export.store.db.database import Database, Instances, newest_revision
from profile_export.store.db.transactions import CannotOpenError
from profile_export.store.files.folders import DroppedFolders, Named
from profile_export.store.files.snapshots import Compactions


@dataclass(frozen=True, slots=True)
class StoreStatus:
    """How a store stands.

    Revisions are versions of the tables: the one there is, None: there are no tables; and the one that this program
    makes. Ids of instances are None where there is none, that of the database also before it is upgraded.
    """

    revision: str | None
    newest_revision: str | None
    database_instance: str | None
    lake_instance: str | None
    in_use: bool


async def status(settings: StoreSettings) -> StoreStatus:
    """Say how a store stands, also beside a server.

    Raises:
        StartError: It cannot be read.
    """
    with starting():
        return await _Place(settings).status()


async def upgrade(settings: StoreSettings) -> tuple[str | None, str | None]:
    """Bring the tables of a store up to date; return the version that they had and the one that they have.

    Raises:
        StartError: It cannot be, or others have it open.
    """
    with starting():
        return await _Place(settings).upgrade()


async def check(settings: StoreSettings) -> Findings:
    """Compare a store with its lake, also beside a server.

    Raises:
        StartError: It cannot be read.
    """
    with starting():
        return await _Place(settings).check()


class _Place:
    def __init__(self, settings: StoreSettings) -> None:
        try:
            self._database = Database(settings.url or settings.data_dir)
        except CannotOpenError as error:
            raise StartError(str(error)) from error
        self._lake = LocalLake(settings.data_dir)
        self._instances = Instances(self._database)

    async def status(self) -> StoreStatus:
        try:
            revision, newest = await self._database.revision(), newest_revision()
            instance = await self._instances.get() if revision == newest else None
            in_use = await self._database.in_use()
        except CannotOpenError as error:
            raise StartError(str(error)) from error
        finally:
            await self._database.close()
        database_instance = instance.id if instance else None
        return StoreStatus(revision, newest, database_instance, self._lake.instance(), in_use)

    async def upgrade(self) -> tuple[str | None, str | None]:
        try:
            before = await self._store_there()
            if await self._database.in_use():
                message = "Others have the database open: stop all servers and workers, then upgrade it."
                raise StartError(message)
            await self._database.open(may_make=False)
            return before, await self._database.revision()
        except CannotOpenError as error:
            raise StartError(str(error)) from error
        finally:
            await self._database.close()

    async def check(self) -> Findings:
        try:
            if await self._store_there() != newest_revision():
                message = "The tables are of another version than this program: profile-export db status says which."
                raise StartError(message)
            both = StoreAndLake(
                self._instances,
                Named(self._database),
                Compactions(self._database),
                DroppedFolders(self._database),
                self._lake,
            )
            return await check_up(both)
        except CannotOpenError as error:
            raise StartError(str(error)) from error
        finally:
            await self._database.close()

    async def _store_there(self) -> str:
        revision = await self._database.revision()
        if revision is None:
            message = f"There is no store in {self._lake.root.parent}, or in the database that --database-url names."
            raise StartError(message)
        return revision
