"""What is exported under fire, in what ways, and the rows that must come out: they are the same for every job."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import grpc.aio

from profile_export.client import (
    Client,
    DatasetKind,
    ExportSpec,
    IdentityField,
    IdentityGraph,
    Profiles,
    Segment,
    UploadFormat,
    export_spec,
)
from profile_export.v1 import dataset_pb2
from profile_export.v1 import dataset_service_pb2 as ds
from profile_export.v1.dataset_service_pb2_grpc import DatasetServiceStub

PEOPLE = 400
Row = tuple[str | None, str | None, str | None]
"""Of a person: `crmId`, `email`, `city`."""
COLUMNS = ("crmId", "email", "city")
SEGMENTS = ("even", "third", "nobody")
_MEMBER = {"status": "realized"}
_BUILT_IN = "timestampOrdered-none-mp"


def _shops(number: int) -> bool:
    return number % 4 != 0


def _segments(number: int) -> list[str]:
    return [name for name, every in (("even", 2), ("third", 3)) if number % every == 0]


def _crm(number: int) -> Row:
    return (f"C-{number}", f"p{number}@x.org", None)


def _shop(number: int) -> Row:
    return (None, f"p{number}@x.org", f"city {number % 7}")


def _whole(number: int) -> Row:
    return (f"C-{number}", f"p{number}@x.org", f"city {number % 7}" if _shops(number) else None)


def _rows(rows: Iterable[Row]) -> Counter[Row]:
    return Counter(rows)


_EVERYBODY = range(PEOPLE)
_UNLINKED = _rows([*map(_crm, _EVERYBODY), *map(_shop, filter(_shops, _EVERYBODY))])
_LINKED = _rows(map(_whole, _EVERYBODY))
_BY_SEGMENT = tuple(_rows(_crm(one) for one in _EVERYBODY if name in _segments(one)) for name in SEGMENTS)


@dataclass(frozen=True)
class Kind:
    """A way to export; `batches` are the rows of each batch that is to be visible."""

    name: str
    spec: ExportSpec
    batches: Sequence[Counter[Row]]


@dataclass(frozen=True)
class Sources:
    destination: str
    kinds: Mapping[str, Kind]


async def prepare(address: str, folder: Path) -> Sources:
    """Upload the sources, before any fire."""
    async with Client(address) as client:
        return await _prepare(client, address, folder)


async def _prepare(client: Client, address: str, folder: Path) -> Sources:
    await _upload(
        client,
        folder / "crm.jsonl",
        [
            {
                "crmId": crm,
                "email": email,
                "segmentMembership": {"ups": dict.fromkeys(_segments(number), _MEMBER)},
            }
            for number in _EVERYBODY
            for crm, email, _ in [_crm(number)]
        ],
        [_identity("crmId", "CRM", primary=True), _identity("email", "Email")],
    )
    await _upload(
        client,
        folder / "shop.jsonl",
        [{"email": email, "city": city} for _, email, city in map(_shop, filter(_shops, _EVERYBODY))],
        [_identity("email", "Email", primary=True)],
    )
    union = await _destination(address)
    linked = (await client.create_policy("linked", IdentityGraph.IDENTITY_GRAPH_PDG)).id
    segments = Profiles(tuple(map(Segment, SEGMENTS)))
    by_segment = export_spec(union, policy_id=_BUILT_IN, profiles=segments, batch_per_segment=True)
    kinds = (
        Kind("unlinked", export_spec(union), [_UNLINKED]),
        Kind("linked", export_spec(union, policy_id=linked), [_LINKED]),
        Kind("by segment", by_segment, _BY_SEGMENT),
    )
    return Sources(union, {kind.name: kind for kind in kinds})


def within(kind: Kind, max_run_time: timedelta) -> ExportSpec:
    """Say the same with a limit."""
    spec = ExportSpec()
    spec.CopyFrom(kind.spec)
    spec.max_run_time.FromTimedelta(max_run_time)
    return spec


def _identity(path: str, namespace: str, *, primary: bool = False) -> IdentityField:
    return IdentityField(path=path, namespace=namespace, primary=primary)


async def _destination(address: str) -> str:
    """Make a dataset without a mirror: mirrors have a test of their own, and would take the time of jobs."""
    request = ds.CreateDatasetRequest(
        name="people",
        schema_ref=dataset_pb2.SchemaRef(id="https://ns.adobe.com/xdm/context/profile__union"),
        iceberg=dataset_pb2.IcebergSettings(enabled=False),
    )
    async with grpc.aio.insecure_channel(address) as channel:
        return (await DatasetServiceStub(channel).CreateDataset(request)).dataset.id


async def _upload(
    client: Client, path: Path, rows: Iterable[object], identities: Sequence[IdentityField]
) -> None:
    await asyncio.to_thread(path.write_text, "".join(json.dumps(row) + "\n" for row in rows))
    dataset = await client.create_dataset(path.stem, DatasetKind.DATASET_KIND_RECORD, identities=identities)
    await client.upload(dataset.id, path, UploadFormat.UPLOAD_FORMAT_JSON_LINES)
