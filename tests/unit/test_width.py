"""How wide schemas are: told by looking at no more of them than the answer needs."""

from __future__ import annotations

import pytest

from profile_export.domain.schemas.types import (
    WIDE,
    ArrayType,
    FieldType,
    MapType,
    ObjectType,
    Scalar,
    ScalarKind,
    is_wide,
)

TEXT = Scalar(ScalarKind.TEXT)


def fields(count: int) -> ObjectType:
    return ObjectType({f"f{number}": TEXT for number in range(count)})


def nested(levels: int) -> FieldType:
    kind: FieldType = TEXT
    for level in range(levels):
        kind = ArrayType(kind) if level % 2 else MapType(kind)
    return kind


@pytest.mark.parametrize(
    "schemas",
    [
        [],
        [fields(0)],
        [fields(WIDE - 1)],
        [ObjectType({"deep": nested(WIDE // 2)})],
        [fields(WIDE // 4), fields(WIDE // 4)],
    ],
)
def test_a_few_types_are_not_wide(schemas: list[ObjectType]) -> None:
    assert not is_wide(schemas)


@pytest.mark.parametrize(
    "schemas",
    [
        [fields(WIDE)],
        [ObjectType({"in": ObjectType({"an": ArrayType(fields(WIDE))})})],
        [ObjectType({"deep": nested(WIDE + 1)})],
        [fields(WIDE // 2), fields(WIDE // 2 + 1)],
    ],
)
def test_many_types_are_wide_wherever_they_are(schemas: list[ObjectType]) -> None:
    assert is_wide(schemas)
