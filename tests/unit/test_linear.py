"""What a caller can make large is worked through in a time that grows with it, and not with its square.

Each case has a size at which anything quadratic takes many times as long as is allowed here, and what is linear a small
part of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from profile_export.domain.catalog.datasets import (
    BUILT_IN_SCHEMAS,
    Dataset,
    DatasetKind,
    FieldDeclaration,
    IdentityField,
    SchemaRef,
    check_beside,
    check_declared_fields,
    check_identity_fields,
    initial_fields,
    next_version,
    union_by_kind,
    with_declared,
)
from profile_export.domain.export.plan import ExportCounts
from profile_export.domain.export.selection import select_fields, unknown_paths
from profile_export.domain.merging.policy import AttributeMerge, check_order
from profile_export.domain.schemas.learning import MAX_NAMES, check_record
from profile_export.domain.schemas.types import (
    EMPTY,
    TEXT,
    ArrayType,
    MapType,
    ObjectType,
    TypeConflictError,
)
from tests.builders import at

SECONDS = 5.0
MANY = 20_000
NAMES = [f"field_{number:05}" for number in range(MANY)]
WIDE = ObjectType(dict.fromkeys(NAMES, TEXT))
DECLARED = tuple(FieldDeclaration((name,), TEXT) for name in NAMES)
BELOW_ONE = tuple(FieldDeclaration(("crm", "of", name), TEXT) for name in NAMES)
IDENTITIES = tuple(IdentityField((name,), "Crm") for name in NAMES)
PROFILE = BUILT_IN_SCHEMAS["https://ns.adobe.com/xdm/context/profile"]
OF_A_MAP = ObjectType({"scores": MapType(WIDE), "deep": ArrayType(MapType(MapType(WIDE)))})


def source(dataset_id: str, fields: ObjectType) -> Dataset:
    schema, kind = SchemaRef(PROFILE.id), DatasetKind.RECORD
    return Dataset(dataset_id, dataset_id, "", schema, kind, {}, (), (), fields, at(0), at(0))


def growing_sources() -> object:
    names = dict.fromkeys(NAMES[:10_000], TEXT)
    sources = [source(f"d{number}", ObjectType({**names, f"own_{number}": TEXT})) for number in range(200)]
    return union_by_kind(sources)


def conflicting_sources() -> None:
    sources = [source(f"d{number}", ObjectType({f"own_{number}": TEXT})) for number in range(MANY)]
    sources.append(source("last", ObjectType({"OWN_7": TEXT})))
    with pytest.raises(TypeConflictError, match="'d7'"):
        union_by_kind(sources)


CASES: dict[str, Callable[[], object]] = {
    "one path again and again": lambda: select_fields(WIDE, NAMES[:1] * MANY, "fields"),
    "every path": lambda: select_fields(WIDE, NAMES, "fields"),
    "every path twice": lambda: select_fields(WIDE, [*NAMES, *reversed(NAMES)], "fields"),
    "keys of a map": lambda: select_fields(OF_A_MAP, [f"scores.{n}.{NAMES[0]}" for n in NAMES], "fields"),
    "keys of maps in maps": lambda: select_fields(
        OF_A_MAP, [f"deep.{number % 7}.{name}.{NAMES[-1]}" for number, name in enumerate(NAMES)], "fields"
    ),
    "unknown paths": lambda: unknown_paths(WIDE, [f"{name}#" for name in NAMES], "fields"),
    "a path of a million names": lambda: unknown_paths(WIDE, ["." * 1_000_000], "fields"),
    "declared fields": lambda: initial_fields(PROFILE, (), DECLARED),
    "declared fields of one object": lambda: initial_fields(PROFILE, (), BELOW_ONE),
    "further declared fields": lambda: with_declared(WIDE, DECLARED),
    "checks of declared fields": lambda: check_declared_fields(
        DatasetKind.RECORD, DECLARED[:10_000], "declared_fields"
    ),
    "identity fields": lambda: initial_fields(PROFILE, IDENTITIES),
    "checks of identity fields": lambda: check_identity_fields(DatasetKind.RECORD, IDENTITIES),
    "an order of datasets": lambda: check_order(
        AttributeMerge.DATASET_PRECEDENCE, NAMES, dict.fromkeys(NAMES, True)
    ),
    "many datasets that know the same": growing_sources,
    "a conflict among many datasets": conflicting_sources,
    "a wider version of a schema": lambda: next_version(
        replace(PROFILE, id="own", fields=WIDE), replace(PROFILE, id="own", fields=WIDE, title="other")
    ),
    "a schema beside many datasets": lambda: check_beside(
        [source("d1", WIDE)] * 50, replace(PROFILE, fields=WIDE)
    ),
    "counts of many ranges": lambda: ExportCounts.total(
        ExportCounts(by_namespace={f"{name}{number}": 1 for name in NAMES[:200]}) for number in range(500)
    ),
    "a record of as many names as may be": lambda: check_record(
        dict.fromkeys(NAMES[:MAX_NAMES], "x"), EMPTY, set()
    ),
}


@pytest.mark.parametrize("work", CASES.values(), ids=CASES)
def test_what_is_large_is_worked_through_in_a_time_that_grows_with_it(work: Callable[[], object]) -> None:
    started = time.thread_time()

    work()

    assert time.thread_time() - started < SECONDS
