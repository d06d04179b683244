"""Our side: sources uploaded, jobs created and watched to their end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from benchmarks.data import Sample, SourceData
from profile_export.client import (
    Client,
    Dataset,
    DatasetKind,
    Events,
    ExportJob,
    IdentityField,
    IdentityGraph,
    JobState,
    UploadFormat,
    export_spec,
)

PARQUET = UploadFormat.UPLOAD_FORMAT_PARQUET


class JobFailedError(Exception):
    """A job did not succeed."""


@dataclass(frozen=True)
class Loaded:
    """A tenant with its sources, as uploaded, and where its exports go."""

    datasets: tuple[Dataset, ...]
    destination: str
    rows: int
    seconds: float


@dataclass(frozen=True)
class Finished:
    """A job that succeeded, and how long the client waited for its final transition."""

    job: ExportJob
    seconds: float


@dataclass(frozen=True)
class StoredBatch:
    """A batch and where its files lie."""

    number: int
    files: tuple[str, ...]


async def load(client: Client, sample: Sample) -> Loaded:
    """Upload a sample, in the order of its sources."""
    begin = time.monotonic()
    datasets = [await _upload(client, source) for source in sample.sources]
    took = time.monotonic() - begin
    return Loaded(tuple(datasets), await destination(client), sample.rows, took)


async def destination(client: Client) -> str:
    """Make a dataset to export into, and return its id."""
    return (await client.create_dataset("exports", DatasetKind.DATASET_KIND_UNION)).id


async def policy(client: Client, *, linking: bool, order: Sequence[str] = ()) -> str:
    """Make a policy with graph `pdg` or none, ranking datasets if there is an order, and return its id."""
    graph = IdentityGraph.IDENTITY_GRAPH_PDG if linking else IdentityGraph.IDENTITY_GRAPH_NONE
    return (await client.create_policy("benchmark", graph, order=order)).id


async def run_job(
    client: Client,
    dataset_id: str,
    fields: Sequence[str] = (),
    policy_id: str = "",
    events: Events | None = None,
) -> Finished:
    """Export, and wait for the final transition."""
    begin = time.monotonic()
    spec = export_spec(dataset_id, fields=fields, policy_id=policy_id, events=events)
    created = await client.create_job(spec)
    ended = begin
    async for message in client.watch_job(created.job.id):
        if message.transitions:
            ended = time.monotonic()
    job = await client.get_job(created.job.id)
    if job.state != JobState.JOB_STATE_SUCCEEDED:
        raise JobFailedError("; ".join(f"{error.code}: {error.message}" for error in job.errors))
    return Finished(job, ended - begin)


async def stored_files(client: Client, batch_id: str) -> tuple[str, ...]:
    """Return where the files of a batch lie."""
    files = await client.list_files(batch_id)
    return tuple(unquote(urlsplit(file.location).path) for file in files)


async def stored_batches(client: Client, dataset_id: str) -> list[StoredBatch]:
    """Return the batches of a dataset."""
    batches = await client.list_batches(dataset_id)
    return [StoredBatch(batch.number, await stored_files(client, batch.id)) for batch in batches]


async def crm_dataset(client: Client) -> str:
    """Make a dataset of records known by their `crmId`, and return its id."""
    crm_id = IdentityField(path="crmId", namespace="CRM", primary=True)
    return (await client.create_dataset("crm", DatasetKind.DATASET_KIND_RECORD, identities=[crm_id])).id


async def upload_lines(client: Client, dataset_id: str, path: Path) -> float:
    """Upload JSON lines as a batch; return the seconds it took."""
    begin = time.monotonic()
    await client.upload(dataset_id, path, UploadFormat.UPLOAD_FORMAT_JSON_LINES)
    return time.monotonic() - begin


async def _upload(client: Client, source: SourceData) -> Dataset:
    kind = DatasetKind.DATASET_KIND_EVENT if source.is_event else DatasetKind.DATASET_KIND_RECORD
    identities = [
        IdentityField(path=path, namespace=namespace, primary=number == 0)
        for number, (path, namespace) in enumerate(source.identities)
    ]
    dataset = await client.create_dataset(source.name, kind, identities=identities)
    for upload in source.uploads:
        await client.upload(dataset.id, upload.path, PARQUET)
    return dataset
