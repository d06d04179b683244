"""What is made known for good: how much of it there may be, and how long its names."""

from __future__ import annotations

import pytest

from profile_export.domain.catalog.allowances import (
    LONGEST_NAME,
    LONGEST_NAMESPACE,
    MOST_BATCH_NAMESPACES,
    MOST_BATCH_SPELLINGS,
    MOST_CLASS_FIELDS,
    MOST_DATASET_FIELDS,
    MOST_NAMESPACES,
    MOST_SPELLINGS,
    TooManyError,
    check_batch_namespaces,
    check_class_fields,
    check_dataset_fields,
    check_declared_paths,
    check_tenant_namespaces,
)
from profile_export.domain.schemas.types import TEXT, ArrayType, FieldType, MapType, ObjectType


def names(count: int) -> list[str]:
    return [f"n{number}" for number in range(count)]


def of(count: int, kind: FieldType = TEXT) -> ObjectType:
    return ObjectType(dict.fromkeys(names(count), kind))


def test_a_batch_has_namespaces_and_spellings_up_to_their_limits() -> None:
    few, longest = names(MOST_BATCH_NAMESPACES), ["n" * LONGEST_NAMESPACE]

    check_batch_namespaces("identity", [], [])
    check_batch_namespaces("identity", few, names(MOST_BATCH_SPELLINGS))
    check_batch_namespaces("identity", longest, longest)


@pytest.mark.parametrize(
    ("namespaces", "spellings", "reason"),
    [
        (names(MOST_BATCH_NAMESPACES + 1), names(MOST_BATCH_NAMESPACES + 1), "TOO_MANY_NAMESPACES"),
        (names(1), names(MOST_BATCH_SPELLINGS + 1), "TOO_MANY_NAMESPACES"),
        (["n"], ["N", "n" * (LONGEST_NAMESPACE + 1)], "NAMESPACE_TOO_LONG"),
    ],
)
def test_a_batch_with_more_or_longer_ones_is_refused(
    namespaces: list[str], spellings: list[str], reason: str
) -> None:
    with pytest.raises(TooManyError) as refused:
        check_batch_namespaces("segment", namespaces, spellings)

    assert refused.value.reason == reason
    assert refused.value.metadata["kind"] == "segment"


@pytest.mark.parametrize(
    ("namespaces", "spellings"), [(MOST_NAMESPACES + 1, 1), (MOST_NAMESPACES, MOST_SPELLINGS + 1)]
)
def test_a_tenant_with_more_namespaces_is_refused(namespaces: int, spellings: int) -> None:
    check_tenant_namespaces("identity", MOST_NAMESPACES, MOST_SPELLINGS)

    with pytest.raises(TooManyError, match="may have"):
        check_tenant_namespaces("identity", namespaces, spellings)


@pytest.mark.parametrize(
    ("kind", "each"), [(TEXT, 1), (ArrayType(TEXT), 2), (MapType(TEXT), 2), (ObjectType({"a": TEXT}), 2)]
)
def test_fields_are_counted_at_every_depth(kind: FieldType, each: int) -> None:
    check_dataset_fields(of(MOST_DATASET_FIELDS // each, kind))
    check_class_fields(of(MOST_CLASS_FIELDS // each, kind))

    for check, limit in (
        (check_dataset_fields, MOST_DATASET_FIELDS),
        (check_class_fields, MOST_CLASS_FIELDS),
    ):
        with pytest.raises(TooManyError) as refused:
            check(of(limit // each + 1, kind))
        assert refused.value.reason == "TOO_MANY_FIELDS"
        assert refused.value.metadata == {"count": str(limit + each), "limit": str(limit)}


def test_paths_are_counted_before_anything_is_made_of_them() -> None:
    together, apart = (
        [("a", "b", "c", name) for name in names(MOST_DATASET_FIELDS - 3)],
        [(name, "a", "b", "c", "d") for name in names(MOST_DATASET_FIELDS // 5 + 1)],
    )

    check_declared_paths(together)
    with pytest.raises(TooManyError) as refused:
        check_declared_paths(apart)

    assert refused.value.reason == "TOO_MANY_FIELDS"
    assert refused.value.metadata == {
        "count": str(MOST_DATASET_FIELDS + 5),
        "limit": str(MOST_DATASET_FIELDS),
    }


@pytest.mark.parametrize(
    "around", [ObjectType, lambda fields: ObjectType({"a": MapType(ObjectType(fields))})]
)
def test_a_field_with_too_long_a_name_is_refused_wherever_it_stands(around: type[ObjectType]) -> None:
    check_dataset_fields(around({"n" * LONGEST_NAME: TEXT}))

    with pytest.raises(TooManyError) as refused:
        check_dataset_fields(around({"n" * (LONGEST_NAME + 1): TEXT}))

    assert refused.value.reason == "FIELD_NAME_TOO_LONG"
