"""Merge policies: which fragments join and which value wins."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from profile_export.domain.catalog import PROFILE_CLASS


class IdentityGraph(StrEnum):
    """Which fragments join."""

    NONE = "none"
    """Each primary identity is a profile of its own (S5)."""
    PDG = "pdg"
    """All identities that occur together, anywhere and through any chain, are one profile (S4)."""


class AttributeMerge(StrEnum):
    """Which value wins."""

    TIMESTAMP_ORDERED = "timestampOrdered"
    """The one of the later place (S10)."""
    DATASET_PRECEDENCE = "dataSetPrecedence"
    """The one of the dataset named first (S10)."""


@dataclass(frozen=True, slots=True)
class MergePolicy:
    """One version of a merge policy.

    `order` names source datasets, the strongest first; it is empty with `timestampOrdered`. `create_time` is that of
    version 1, `update_time` that of this one; both are None for the policy that is built in.
    """

    id: str
    version: int
    name: str
    graph: IdentityGraph
    attribute_merge: AttributeMerge = AttributeMerge.TIMESTAMP_ORDERED
    schema_name: str = PROFILE_CLASS
    create_time: datetime | None = None
    order: tuple[str, ...] = ()
    is_default: bool = False
    update_time: datetime | None = None


BUILT_IN_POLICY = MergePolicy(
    id="timestampOrdered-none-mp", version=1, name="Built-in default", graph=IdentityGraph.NONE
)
"""Used when a job names no policy and the tenant has set no default."""
