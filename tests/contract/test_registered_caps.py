"""What is made known for good has a limit; what would go beyond it is refused and leaves nothing behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from itertools import count

import pytest
import pytest_asyncio
from sqlalchemy import Table, func, insert, select

from profile_export.domain.catalog.allowances import (
    LONGEST_NAME,
    LONGEST_NAMESPACE,
    MOST_BATCH_NAMESPACES,
    MOST_BATCH_SPELLINGS,
    MOST_CLASS_FIELDS,
    MOST_DATASET_FIELDS,
    MOST_NAMESPACES,
    TooManyError,
    field_count,
)
from profile_export.domain.catalog.batches import BatchState, IngestedFile, NamespaceUse, UploadStart
from profile_export.domain.catalog.datasets import (
    DatasetChange,
    DatasetKind,
    FieldDeclaration,
    NewDataset,
    Schema,
    SchemaRef,
    Tenant,
)
from profile_export.domain.schemas.types import TEXT, ArrayType, FieldType, MapType, ObjectType
from profile_export.store.catalog.datasets import Catalog
from profile_export.store.catalog.schemas import Schemas
from profile_export.store.catalog.tenants import IDENTITY, SEGMENT
from profile_export.store.db.database import Database
from profile_export.store.db.tables import batches, namespace_spellings, namespaces, tenants
from profile_export.store.files.uploads import Uploads
from tests.databases import Place

NUMBERS = count()
CLASS = "https://ns.adobe.com/xdm/context/profile"
TENANT = Tenant()


class Store:
    def __init__(self, place: Place) -> None:
        self.database = Database(place)
        self.catalog, self.schemas = Catalog(self.database), Schemas(self.database)
        self.uploads = Uploads(self.database)

    async def dataset(self, schema: str = CLASS, declared: tuple[FieldDeclaration, ...] = ()) -> str:
        new = NewDataset("d", "", SchemaRef(schema), {}, (), declared)
        made, _ = await self.catalog.create_dataset(TENANT, new, f"{next(NUMBERS):024x}", "")
        return made.id

    async def send(
        self,
        dataset_id: str,
        fields: Iterable[str] = ("a",),
        identities: Sequence[str] = (),
        segments: Sequence[str] = (),
        kind: FieldType = TEXT,
    ) -> str:
        batch_id = f"b{next(NUMBERS)}"
        start = UploadStart(dataset_id, batch_id, "1", "csv")
        await self.uploads.open_upload(TENANT, start, f"{dataset_id}/{batch_id}", batch_id)
        known = ObjectType(dict.fromkeys(fields, kind))
        named, of_segments = (
            NamespaceUse(tuple(_different(used)), frozenset(used)) for used in (identities, segments)
        )
        facts = IngestedFile("x", (), 0, 0, known, named, of_segments, (), "sha", 1)
        await self.uploads.commit_batch(TENANT, batch_id, {"1": facts})
        return batch_id

    async def count(self, table: Table) -> int:
        async with self.database.read() as connection:
            return (await connection.execute(select(func.count()).select_from(table))).scalar_one()


def _different(spellings: Sequence[str]) -> Sequence[str]:
    return list({spelling.casefold(): spelling for spelling in spellings}.values())


def names(number: int, prefix: str = "f") -> list[str]:
    return [f"{prefix}{index}" for index in range(number)]


@pytest_asyncio.fixture
async def store(place: Place) -> AsyncIterator[Store]:
    opened = Store(place)
    await opened.database.open()
    yield opened
    await opened.database.close()


@pytest.mark.parametrize("kind", [IDENTITY, SEGMENT])
async def test_a_batch_names_so_many_namespaces_and_no_more(store: Store, kind: str) -> None:
    dataset_id = await store.dataset()
    field = "identities" if kind == IDENTITY else "segments"
    await store.send(dataset_id, **{field: names(MOST_BATCH_NAMESPACES)})  # type: ignore[arg-type]  # one of the two

    with pytest.raises(TooManyError) as caught:
        await store.send(dataset_id, **{field: names(MOST_BATCH_NAMESPACES + 1, "more")})  # type: ignore[arg-type]  # as above

    assert caught.value.reason == "TOO_MANY_NAMESPACES"
    assert caught.value.metadata == {"kind": kind, "count": "1001", "limit": "1000"}
    assert await store.count(namespaces) == MOST_BATCH_NAMESPACES


@pytest.mark.parametrize("kind", [IDENTITY, SEGMENT])
async def test_a_namespace_has_so_many_characters_and_no_more(store: Store, kind: str) -> None:
    dataset_id = await store.dataset()
    field = "identities" if kind == IDENTITY else "segments"
    await store.send(dataset_id, **{field: ["n" * LONGEST_NAMESPACE]})  # type: ignore[arg-type]  # one of the two

    with pytest.raises(TooManyError) as caught:
        await store.send(dataset_id, **{field: ["Email", "m" * (LONGEST_NAMESPACE + 1)]})  # type: ignore[arg-type]  # as above

    assert caught.value.reason == "NAMESPACE_TOO_LONG"
    assert caught.value.metadata == {"kind": kind, "length": "256", "limit": "255"}
    assert await store.count(namespaces) == 1


@pytest.mark.parametrize(
    "within",
    [TEXT, ArrayType(TEXT), MapType(TEXT), ObjectType({"a": TEXT})],
    ids=["text", "array", "map", "object"],
)
async def test_the_name_of_a_field_has_so_many_characters_and_no_more(
    store: Store, within: FieldType
) -> None:
    dataset_id = await store.dataset()
    await store.send(dataset_id, ["n" * LONGEST_NAME], kind=within)

    for kind in (within, ObjectType({"inner": within})):
        with pytest.raises(TooManyError) as caught:
            await store.send(dataset_id, ["m" * (LONGEST_NAME + 1)], kind=kind)
        assert caught.value.reason == "FIELD_NAME_TOO_LONG"
        assert caught.value.metadata == {"length": "1025", "limit": "1024"}

    known = (await store.catalog.get_dataset(TENANT, dataset_id)).fields.fields
    assert "m" * (LONGEST_NAME + 1) not in known


async def test_spellings_of_few_namespaces_are_bounded_too(store: Store) -> None:
    dataset_id = await store.dataset()
    letters = 12
    spelled = [
        "".join(letter.upper() if at >> place & 1 else letter for place, letter in enumerate("abcdefghijkl"))
        for at in range(2**letters)
    ]

    with pytest.raises(TooManyError) as caught:
        await store.send(dataset_id, identities=spelled)

    assert caught.value.metadata["limit"] == str(MOST_BATCH_SPELLINGS)
    assert await store.count(namespace_spellings) == 0


async def test_a_tenant_has_so_many_namespaces_identities_and_segments_apart(store: Store) -> None:
    dataset_id = await store.dataset()
    async with store.database.write() as connection:
        tenant_id = (await connection.execute(select(tenants.c.id))).scalar_one()
        there = [
            {"tenant_id": tenant_id, "kind": IDENTITY, "folded": name, "registered": name}
            for name in names(MOST_NAMESPACES - 1, "there")
        ]
        await connection.execute(insert(namespaces), there)
    await store.send(dataset_id, identities=["last"])

    with pytest.raises(TooManyError) as caught:
        await store.send(dataset_id, identities=["one-more"])

    assert caught.value.metadata == {"kind": IDENTITY, "count": "10001", "limit": "10000"}
    assert await store.count(namespaces) == MOST_NAMESPACES
    # What is known goes on, and so do segments.
    await store.send(dataset_id, identities=["LAST", "there7"], segments=["one-more"])


async def test_of_two_batches_at_once_that_have_room_for_one_one_counts(store: Store) -> None:
    first, second = await store.dataset(), await store.dataset()
    half = MOST_DATASET_FIELDS // 2 + 1
    done = await asyncio.gather(
        store.send(first, names(half, "a")), store.send(first, names(half, "b")), return_exceptions=True
    )

    assert [type(one) for one in done if isinstance(one, BaseException)] == [TooManyError]
    await store.send(second, names(half, "b"))


@pytest.mark.parametrize(
    "kind",
    [
        TEXT,
        ArrayType(TEXT),
        ArrayType(ObjectType({"a": TEXT})),
        MapType(ObjectType({"a": ObjectType({"b": TEXT})})),
    ],
)
async def test_a_dataset_knows_so_many_fields_and_no_more(store: Store, kind: FieldType) -> None:
    dataset_id = await store.dataset()
    known = field_count((await store.catalog.get_dataset(TENANT, dataset_id)).fields)
    each = field_count(ObjectType({"f": kind}))
    await store.send(dataset_id, names((MOST_DATASET_FIELDS - known) // each), kind=kind)
    await store.send(dataset_id, names((MOST_DATASET_FIELDS - known) % each, "rest"))

    with pytest.raises(TooManyError) as caught:
        await store.send(dataset_id, ["one-more"])

    assert caught.value.reason == "TOO_MANY_FIELDS"
    assert caught.value.metadata == {"count": "10001", "limit": "10000"}
    async with store.database.read() as connection:
        states = (await connection.execute(select(batches.c.state).order_by(batches.c.key))).scalars().all()
    assert states == [BatchState.SUCCEEDED, BatchState.SUCCEEDED, BatchState.LOADING]
    await store.send(dataset_id, ["f1"], kind=kind)


async def test_a_class_knows_so_many_fields_and_no_more(store: Store) -> None:
    share = MOST_CLASS_FIELDS // 3
    for number in range(3):
        if number:
            await store.send(await store.dataset(), names(share, f"x{number}"))
    last = await store.dataset()

    with pytest.raises(TooManyError, match="The union of the class would know"):
        await store.send(last, names(share + 2, "x3"))

    # Fields that the class knows already cost it nothing.
    await store.send(last, names(share, "x1"))


@pytest.mark.parametrize("way", ["create", "update", "register"])
async def test_declared_fields_and_those_of_schemas_count(store: Store, way: str) -> None:
    declared = tuple(FieldDeclaration((name,), TEXT) for name in names(MOST_DATASET_FIELDS + 1))
    wide = ObjectType(dict.fromkeys(names(MOST_DATASET_FIELDS + 1), TEXT))
    there = await store.dataset()

    schema = Schema("https://x/wide", DatasetKind.RECORD, wide, class_id=CLASS, title="t")
    refused: dict[str, Callable[[], Awaitable[object]]] = {
        "create": lambda: store.dataset(declared=declared),
        "update": lambda: store.catalog.update_dataset(
            TENANT, there, DatasetChange(declared_fields=declared)
        ),
        "register": lambda: store.schemas.register(TENANT, [schema]),
    }

    with pytest.raises(TooManyError) as caught:
        await refused[way]()

    assert caught.value.reason == "TOO_MANY_FIELDS"
    assert (await store.catalog.get_dataset(TENANT, there)).declared_fields == ()


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (ObjectType({}), 0),
        (ObjectType({"a": TEXT, "b": ObjectType({"c": TEXT})}), 3),
        (ObjectType({"a": ArrayType(ObjectType({"b": TEXT, "c": TEXT}))}), 4),
        (ObjectType({"a": MapType(ArrayType(TEXT))}), 3),
    ],
)
def test_fields_are_counted_at_every_depth(kind: FieldType, fields: int) -> None:
    assert field_count(kind) == fields
