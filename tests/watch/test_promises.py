"""The seven promises of WatchJob, each checked on what the watchers of one scenario recorded.

In it connections break at random, readers are slow, and a server is drained and restarted in the middle. `embedded` is
one server after another over a data directory, `postgresql` two at once over a database. The number is the seed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pytest
import pytest_asyncio

from tests.databases import Postgres
from tests.watch import promises
from tests.watch.scenario import CROWD, Recorded, play

SEEDS = 3
PATIENCE = 20.0
"""Seconds that a slow machine may take; a heartbeat comes after 60."""


def forms() -> list[object]:
    return [
        pytest.param(
            (form, seed),
            id=f"{form}-{seed}",
            marks=[pytest.mark.slow] if seed or form == "postgresql" else [],
        )
        for seed in range(SEEDS)
        for form in ("embedded", "postgresql")
    ]


@pytest_asyncio.fixture(scope="module", loop_scope="session", params=forms())
async def recorded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Recorded]:
    form, seed = request.param
    data_dir: Path = tmp_path_factory.mktemp(form)
    if form == "embedded":
        yield await play(data_dir, data_dir, seed)
    else:
        postgres: Postgres = request.getfixturevalue("postgres")
        async with postgres.database(with_tables=True) as url:
            yield await play(url, data_dir, seed)


def assert_none(faults: Iterable[str]) -> None:
    found = "\n".join(faults)
    assert not found, found


def test_the_jobs_made_every_kind_of_move(recorded: Recorded) -> None:
    made = {move.reason for log in recorded.logs.values() for move in log}

    assert recorded.is_whole
    assert made >= {"created", "claimed", "retried", "released", "asked to cancel", "let go", "cancelled"}
    assert made >= {"succeeded", "failed"}
    assert any(len(history.connections) > 5 for history in recorded.histories)


def test_ordered_unique_reliable(recorded: Recorded) -> None:
    for history in recorded.histories:
        assert_none(promises.ordered(history, recorded.logs[history.job_id]))


def test_progress_never_goes_back(recorded: Recorded) -> None:
    for history in recorded.histories:
        assert_none(promises.never_back(history))


def test_resumable(recorded: Recorded) -> None:
    for history in recorded.histories:
        assert_none(promises.resumable(history, recorded.logs[history.job_id]))


def test_final_if_and_only_if_ok(recorded: Recorded) -> None:
    for history in recorded.histories:
        assert_none(promises.final_if_and_only_if_ok(history, recorded.logs[history.job_id]))


def test_no_lost_wake_up(recorded: Recorded) -> None:
    for history in recorded.histories:
        assert_none(promises.no_lost_wake_up(history, recorded.logs[history.job_id], PATIENCE))


def test_isolated(recorded: Recorded) -> None:
    [stalled] = recorded.stalled

    assert_none(promises.isolated(stalled, recorded.beside_stalled, most_messages=3))
    assert next(stalled.messages).message.revision + 3 <= recorded.logs[stalled.job_id][-1].revision


def test_cheap(recorded: Recorded) -> None:
    crowd = [history for history in recorded.histories if "crowd" in history.watcher]

    assert len(crowd) == CROWD
    assert_none(promises.cheap(recorded.histories))


def test_drained(recorded: Recorded) -> None:
    [drain] = recorded.drains

    assert_none(promises.drained(recorded.histories, drain))
