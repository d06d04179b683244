"""What is more than a tenant's share is told with its numbers and a way out."""

from __future__ import annotations

import pickle
from datetime import timedelta

from profile_export.domain.catalog.allowances import quota_exceeded


def test_a_refusal_says_what_is_used_of_what_and_how_to_go_on() -> None:
    error = quota_exceeded("waiting_jobs", 1_000, 1_000, "Cancel some.", timedelta(seconds=1))

    assert error.message == "This tenant may have 1,000 waiting jobs and has 1,000. Cancel some."
    assert error.metadata == {"quota": "waiting_jobs", "limit": "1000", "used": "1000"}
    assert error.retry_after == timedelta(seconds=1)


def test_a_refusal_travels_between_processes_as_it_is() -> None:
    error = quota_exceeded("datasets", 2, 3, "Delete some.")

    travelled = pickle.loads(pickle.dumps(error))

    assert (type(travelled), vars(travelled)) == (type(error), vars(error))
