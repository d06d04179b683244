"""Merge policies in the store: those of before there were versions."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine, text

from profile_export.domain.catalog import Tenant
from profile_export.domain.paging import PageRequest
from profile_export.domain.policy import BUILT_IN_POLICY, AttributeMerge, IdentityGraph, PolicyChange
from profile_export.store import policy_tables
from profile_export.store.database import Database
from profile_export.store.policies import Policies


async def test_policies_made_before_there_were_versions_are_there_and_change(tmp_path: Path) -> None:
    # given a store of before
    engine = create_engine(f"sqlite:///{tmp_path / 'store.sqlite'}")
    config = Config()
    config.set_main_option("script_location", str(Path(policy_tables.__file__).parent / "migrations"))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0005")
        connection.execute(text("INSERT INTO tenants VALUES (1, 'default', 'prod', 0, NULL)"))
        row = "(1, 'p', 1, 'Home', 'pdg', 'timestampOrdered', '_xdm.context.profile', 7)"
        connection.execute(text(f"INSERT INTO merge_policies VALUES {row}"))
    engine.dispose()

    # when it is opened
    database = Database(tmp_path)
    await database.open()
    policies, tenant = Policies(database), Tenant()

    # then its policy is there as it was, and goes on
    listed = (await policies.list_policies(tenant, PageRequest.of(0, ""))).items
    changed = await policies.update_policy(tenant, "p", PolicyChange(name="new", is_default=True))
    first = await policies.find_policy(tenant, "p", 1)
    await database.close()
    assert [policy.id for policy in listed] == [BUILT_IN_POLICY.id, "p"]
    assert (listed[1].version, listed[1].name, listed[1].graph) == (1, "Home", IdentityGraph.PDG)
    assert (listed[1].attribute_merge, listed[1].order) == (AttributeMerge.TIMESTAMP_ORDERED, ())
    assert listed[1].create_time == listed[1].update_time
    assert (changed.version, changed.name, changed.is_default) == (2, "new", True)
    assert (first.version, first.name, first.create_time) == (1, "Home", changed.create_time)
