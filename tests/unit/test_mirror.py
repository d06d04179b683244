"""The Iceberg mirror: what others find a table by."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from profile_export.domain.catalog.batches import MirroredDataset

names = st.text("aB0_.-@", min_size=1, max_size=4)


def test_a_table_is_in_its_tenants_namespace_and_named_by_its_datasets_id_so_that_renaming_moves_nothing() -> (
    None
):
    people = MirroredDataset("64f0", "People", "ACME@AdobeOrg", "eu-prod_1.x")

    assert (people.namespace, people.table) == ("ACME_40AdobeOrg__eu_2dprod_5f1_2ex", "d_64f0")
    assert MirroredDataset("64f0", "Renamed", "default", "prod").namespace == "default__prod"


@given(names, names, names, names)
def test_no_two_tenants_have_one_namespace(org: str, sandbox: str, other: str, other_sandbox: str) -> None:
    one, another = MirroredDataset("1", "", org, sandbox), MirroredDataset("1", "", other, other_sandbox)

    assert (one.namespace == another.namespace) == ((org, sandbox) == (other, other_sandbox))
    assert re.fullmatch("[A-Za-z0-9_]+", one.namespace)
