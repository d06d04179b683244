"""Both kinds of watches, and the wake-ups that they share."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from profile_export.application.watch.job_feed import FeedEncoder, FeedWatches, JobFeeds
from profile_export.application.watch.job_log import JobEncoder, JobLog, JobWatches
from profile_export.application.watch.reading import Readings
from profile_export.application.watch.watchers import Watchers
from profile_export.domain.catalog.allowances import DEFAULT_QUOTAS, Quotas
from profile_export.domain.catalog.datasets import Tenant
from profile_export.store.db.wakeups import Wakeups
from profile_export.store.jobs.changes import Changes
from profile_export.store.jobs.jobs import Jobs


class Watches:
    """Watches of one job, `of_job`, and of all jobs of a tenant, `of_jobs`, that one door serves.

    The door's encoders serialise what is read; its watchers share the bytes.
    """

    def __init__(
        self,
        jobs: Jobs,
        changes: Changes,
        wakeups: Wakeups,
        now: Callable[[], datetime],
        quotas: Quotas = DEFAULT_QUOTAS,
        *,
        job_encoder: JobEncoder,
        feed_encoder: FeedEncoder,
    ) -> None:
        watchers = Watchers(quotas.watches)
        self.end_all = watchers.end_all
        logs = Readings[tuple[Tenant, int], JobLog](
            lambda tenant_and_job: JobLog(jobs, wakeups, job_encoder, now, *tenant_and_job)
        )
        self.of_job = JobWatches(watchers, logs)
        self.of_jobs = FeedWatches(watchers, JobFeeds(changes, wakeups, feed_encoder), now)
