"""A worker process: it runs jobs beside the servers of a PostgreSQL database, and answers no calls."""

from __future__ import annotations

from profile_export.app import processes
from profile_export.app.jobs import JobRunner
from profile_export.config import WorkSettings


async def run_worker(settings: WorkSettings) -> None:
    """Run a worker process until SIGTERM or SIGINT.

    Raises:
        StartError: The database cannot be used.
    """
    await processes.run(lambda: WorkerProcess(settings))


class WorkerProcess:
    """One worker process: `workers` jobs at once, and one more of a tenant that runs none."""

    def __init__(self, settings: WorkSettings) -> None:
        self._jobs = JobRunner(settings)

    async def start(self) -> str:
        """Open everything and begin to run jobs.

        Raises:
            StartError: The database cannot be used.
        """
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
