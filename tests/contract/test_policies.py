"""Merge policies in the store: those of before there were versions."""

from __future__ import annotations

from sqlalchemy import text

from profile_export.domain.catalog.datasets import Tenant
from profile_export.domain.merging.policy import BUILT_IN_POLICY, AttributeMerge, IdentityGraph, PolicyChange
from profile_export.store.catalog.policies import Policies
from profile_export.store.db.database import Database
from tests.databases import Place, engine_of, make_former_tables
from tests.pages import page_of


async def test_policies_made_before_there_were_versions_are_there_and_change(empty_place: Place) -> None:
    # given a store of before
    await make_former_tables(empty_place, "0005")
    async with engine_of(empty_place).begin() as connection:
        await connection.execute(text("INSERT INTO tenants VALUES (1, 'default', 'prod', 0, NULL)"))
        row = "(1, 'p', 1, 'Home', 'pdg', 'timestampOrdered', '_xdm.context.profile', 7)"
        await connection.execute(text(f"INSERT INTO merge_policies VALUES {row}"))

    # when it is opened
    database = Database(empty_place)
    await database.open()
    policies, tenant = Policies(database), Tenant()

    # then its policy is there as it was, and goes on
    listed = (await policies.list_policies(tenant, page_of())).items
    changed = await policies.update_policy(tenant, "p", PolicyChange(name="new", is_default=True))
    first = await policies.find_policy(tenant, "p", 1)
    await database.close()
    assert [policy.id for policy in listed] == [BUILT_IN_POLICY.id, "p"]
    assert (listed[1].version, listed[1].name, listed[1].graph) == (1, "Home", IdentityGraph.PDG)
    assert (listed[1].attribute_merge, listed[1].order) == (AttributeMerge.TIMESTAMP_ORDERED, ())
    assert listed[1].create_time == listed[1].update_time
    assert (changed.version, changed.name, changed.is_default) == (2, "new", True)
    assert (first.version, first.name, first.create_time) == (1, "Home", changed.create_time)
