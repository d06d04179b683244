"""Servers and workers killed, stopped and cut off from their database, at named points and at random moments.

Here it is short and always the same. `make chaos` runs the long form: `KILLS` at random moments and every named point.
`SEED` repeats the decisions of a run that failed, as far as the machine lets them hit the same moments.
"""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path
from random import Random

import pytest

from tests.chaos.run import House, Plan, burn, embedded, scaled_out, table
from tests.databases import Postgres

KILLS = os.environ.get("KILLS")
SHORT = {
    "kill inside commit",
    "kill inside let go",
    "stop before commit",
}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(4 * 3600 if KILLS else 600)]


def planned() -> Plan:
    """The long form if the environment asks for it."""
    if KILLS:
        return Plan(os.environ.get("SEED") or secrets.token_hex(4), int(KILLS))
    return Plan("1", kills=2, points=lambda fuse: fuse.name in SHORT, until_even=False, clients=6)


async def survives(house: House, folder: Path, plan: Plan) -> None:
    sys.stdout.write(f"\nSEED={plan.seed} KILLS={plan.kills}\n")
    outcome = await burn(house, folder, plan)
    sys.stdout.write(table(outcome))
    assert outcome.faults == []


async def test_the_embedded_server_survives(tmp_path: Path) -> None:
    plan = planned()
    async with embedded(tmp_path, Random(plan.seed)) as house:
        await survives(house, tmp_path, plan)


async def test_servers_and_workers_on_postgresql_survive(tmp_path: Path, postgres: Postgres) -> None:
    plan = planned()
    async with (
        postgres.database(with_tables=True) as url,
        scaled_out(tmp_path, Random(plan.seed), url) as house,
    ):
        await survives(house, tmp_path, plan)
