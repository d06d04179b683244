"""All watches of a server, over what they share."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from profile_export.api.job_feed import JobFeeds
from profile_export.api.job_log import JobLog
from profile_export.api.reading import Readings
from profile_export.api.watch import JobWatches
from profile_export.api.watch_jobs import FeedWatches
from profile_export.api.watchers import Watchers
from profile_export.domain.catalog import Tenant
from profile_export.domain.quotas import DEFAULT_QUOTAS, Quotas
from profile_export.store.changes import Changes
from profile_export.store.events import Wakeups
from profile_export.store.jobs import Jobs


class Watches:
    """Watches of one job, `of_job`, and of all jobs of a tenant, `of_jobs`."""

    def __init__(
        self,
        jobs: Jobs,
        changes: Changes,
        wakeups: Wakeups,
        now: Callable[[], datetime],
        quotas: Quotas = DEFAULT_QUOTAS,
    ) -> None:
        watchers = Watchers(quotas.watches)
        self.end_all = watchers.end_all
        logs = Readings[tuple[Tenant, int], JobLog](
            lambda tenant_and_job: JobLog(jobs, wakeups, *tenant_and_job, now)
        )
        self.of_job = JobWatches(watchers, logs)
        self.of_jobs = FeedWatches(watchers, JobFeeds(changes, wakeups), now)
