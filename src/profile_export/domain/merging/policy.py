"""Merge policies: which fragments join and which value wins."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from profile_export.domain.catalog.datasets import PROFILE_CLASS
from profile_export.domain.errors import FailedPreconditionError, InvalidArgumentError
from profile_export.domain.lists import ListFields, truth, word
from profile_export.domain.merging.identity import Identity, IdentityKey, identity_key


class IdentityGraph(StrEnum):
    """Which fragments join."""

    NONE = "none"
    """Each primary identity is a profile of its own (S5)."""
    PDG = "pdg"
    """All identities that occur together, anywhere and through any chain, are one profile (S4)."""


class AttributeMerge(StrEnum):
    """Which value wins."""

    TIMESTAMP_ORDERED = "timestampOrdered"
    """That of the later place (S10)."""
    DATASET_PRECEDENCE = "dataSetPrecedence"
    """That of the dataset named first (S10)."""


POLICY_LIST = ListFields(
    {
        "name": str,
        "is_default": truth,
        "identity_graph": word({graph.name: graph for graph in IdentityGraph}, "IDENTITY_GRAPH_"),
        "attribute_merge.type": word(
            {
                "TIMESTAMP_ORDERED": AttributeMerge.TIMESTAMP_ORDERED,
                "DATA_SET_PRECEDENCE": AttributeMerge.DATASET_PRECEDENCE,
            },
            "ATTRIBUTE_MERGE_TYPE_",
        ),
    },
    ("create_time", "name"),
)


@dataclass(frozen=True, slots=True)
class MergePolicy:
    """One version of a merge policy.

    `order` names source datasets, the strongest first; it is empty with `timestampOrdered`. `is_default` is no part of
    a version: it tells of the policy, in whichever version it is read. `create_time` is that of version 1,
    `update_time` that of this one; both are None for the policy that is built in. `excluded_identities` link nobody
    (S4); they are as `each_once` makes them.
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
    excluded_identities: tuple[Identity, ...] = ()

    @property
    def etag(self) -> str:
        """What is another one after each change, as HTTP writes it."""
        return f'"{self.version}{"-default" if self.is_default else ""}"'


BUILT_IN_POLICY = MergePolicy(
    id="timestampOrdered-none-mp", version=1, name="Built-in default", graph=IdentityGraph.NONE
)
"""Used when a job names no policy and the tenant has set no default."""


@dataclass(frozen=True, slots=True)
class PolicyChange:
    """What a caller changes of a merge policy; None stays as it is, and `order` comes with `attribute_merge` only.

    `excluded_identities` take the place of all former ones; they are as `each_once` makes them.
    """

    name: str | None = None
    graph: IdentityGraph | None = None
    attribute_merge: AttributeMerge | None = None
    order: tuple[str, ...] = ()
    is_default: bool | None = None
    excluded_identities: tuple[Identity, ...] | None = None

    def next_version(self, policy: MergePolicy) -> MergePolicy:
        """Return the version that follows, or the policy itself if its name and its rules stay as they are."""
        changed = replace(
            policy,
            name=policy.name if self.name is None else self.name,
            graph=self.graph or policy.graph,
            attribute_merge=self.attribute_merge or policy.attribute_merge,
            order=self.order if self.attribute_merge else policy.order,
            excluded_identities=(
                policy.excluded_identities if self.excluded_identities is None else self.excluded_identities
            ),
        )
        return policy if changed == policy else replace(changed, version=policy.version + 1)


def each_once(identities: Iterable[Identity]) -> tuple[Identity, ...]:
    """Return identities in order, each once: of several spellings of its namespace the one that comes first (S2)."""
    found: dict[IdentityKey, Identity] = {}
    for identity in identities:
        found.setdefault(identity_key(identity), identity)
    return tuple(sorted(found.values()))


def check_changeable(policy_id: str) -> None:
    """Raise FailedPreconditionError if a policy cannot be changed or deleted, because it is built in."""
    if policy_id == BUILT_IN_POLICY.id:
        raise FailedPreconditionError(
            "MERGE_POLICY_BUILT_IN",
            f"The merge policy '{policy_id}' is built in and stays as it is; make one of your own.",
            metadata={"id": policy_id},
        )


def check_order(attribute_merge: AttributeMerge, order: Sequence[str], is_source: Mapping[str, bool]) -> None:
    """Refuse an order that ranks anything but source datasets (S10).

    Args:
        attribute_merge: The rule that the order belongs to.
        order: Ids of datasets, the strongest first.
        is_source: The datasets of the tenant, and whether exports read them (S11).

    Raises:
        InvalidArgumentError: It is missing or given in vain, or names a dataset twice or one that is no source.
    """
    ranks = attribute_merge is AttributeMerge.DATASET_PRECEDENCE
    if ranks and not order:
        raise _order_invalid(
            "attribute_merge.order", "is required: dataSetPrecedence ranks the datasets in it."
        )
    if order and not ranks:
        raise _order_invalid("attribute_merge.order", "ranks datasets under dataSetPrecedence only.")
    named: set[str] = set()
    for place, dataset_id in enumerate(order):
        field = f"attribute_merge.order[{place}]"
        if dataset_id not in is_source:
            raise _order_invalid(field, f"there is no dataset '{dataset_id}'.")
        if not is_source[dataset_id]:
            raise _order_invalid(
                field,
                f"'{dataset_id}' is no source: exports read neither unions nor what is tagged enabled:false.",
            )
        if dataset_id in named:
            raise _order_invalid(field, f"names '{dataset_id}' a second time.")
        named.add(dataset_id)


def _order_invalid(field: str, description: str) -> InvalidArgumentError:
    return InvalidArgumentError.of_field(field, description, "ORDER_INVALID")
