"""Schema documents that are small to send and dear to read: refused or taken, never INTERNAL, and alone in waiting."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import pytest
import pytest_asyncio

from profile_export.app import Application
from profile_export.config import load
from profile_export.v1 import schema_service_pb2 as ss
from tests.hostile_files import dear_documents, document
from tests.service.conftest import settings_for
from tests.service.harness import Caller, refusal_from

DOCUMENTS = list(dear_documents())
ENDS = {
    (grpc.StatusCode.OK, ""),
    (grpc.StatusCode.INVALID_ARGUMENT, "SCHEMA_INVALID"),
    (grpc.StatusCode.FAILED_PRECONDITION, "SCHEMA_REF_NOT_FOUND"),
    (grpc.StatusCode.RESOURCE_EXHAUSTED, "INGEST_TOO_EXPENSIVE"),
}


async def end_of(caller: Caller, text: str) -> tuple[grpc.StatusCode, str]:
    """How registering a document ends: OK, or the code and the reason."""
    try:
        await caller.schemas.CreateSchema(ss.CreateSchemaRequest(document=text), metadata=caller.metadata)
    except grpc.aio.AioRpcError as error:
        refusal = refusal_from(error)
        return refusal.code, refusal.reason
    return grpc.StatusCode.OK, ""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def strict(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[grpc.aio.Channel]:
    """A server that lets nobody take more than a second of its processor."""
    folder: Path = tmp_path_factory.mktemp("strict")
    options = {"ingest_cpu_seconds": "1", "ingest_cpu_seconds_per_mib": "0", "workers": "0"}
    server = Application(load({**settings_for(folder), **options}, {}))
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield channel
    await server.stop()


@pytest.mark.parametrize(
    "text", [text for _, text in DOCUMENTS], ids=[name.replace(" ", "-") for name, _ in DOCUMENTS]
)
async def test_a_document_ends_in_words(strict: grpc.aio.Channel, text: str) -> None:
    caller = Caller(strict, f"org-{secrets.token_hex(6)}")

    assert await end_of(caller, text) in ENDS


async def test_dear_documents_of_one_tenant_keep_nobody_else_waiting(strict: grpc.aio.Channel) -> None:
    attacker, other = Caller(strict, "attacker"), Caller(strict, "other")
    dear = document(
        properties={f"p{number}": {"type": "string", "pattern": f"^(?!x{number})"} for number in range(6_000)}
    )
    source = await other.dataset("record", {"id": "CRM"})
    await other.upload(source, "a", [{"id": "1"}])
    attacks = [asyncio.create_task(end_of(attacker, dear)) for _ in range(20)]

    began = time.monotonic()
    await other.upload(source, "b", [{"id": "1"}])
    took = time.monotonic() - began

    assert not all(attack.done() for attack in attacks)
    assert took < 5  # what one of them may take by the clock, and far less than all
    for attack in attacks:
        attack.cancel()
