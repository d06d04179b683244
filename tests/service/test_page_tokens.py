"""Page tokens: good at every server of their database, for the list that gave them out and for no other."""

from __future__ import annotations

import random
from base64 import b64decode, urlsafe_b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio

from profile_export.app import Application
from profile_export.config import load
from profile_export.v1 import dataset_service_pb2 as ds
from profile_export.v1 import export_service_pb2 as es
from profile_export.v1 import profile_pb2
from profile_export.v1 import profile_service_pb2 as ps
from profile_export.v1 import schema_service_pb2 as ss
from profile_export.v1.merge_policy_pb2 import IDENTITY_GRAPH_NONE
from tests.service.conftest import settings_for
from tests.service.harness import Caller, Refusal, refusal_of, replay, upload_messages

VISITS = [{"crmId": "1", "_id": name, "timestamp": "2026-01-01T00:00:00Z"} for name in "abc"]
KNOWN = profile_pb2.Identity(namespace="CRM", id="1")
Start = Callable[[], Awaitable[Caller]]


async def stock(caller: Caller) -> dict[str, Any]:
    """Make at least two of everything that is listed; return each list's request, by its method."""
    source = await caller.dataset("record", {"crmId": "CRM"})
    web = await caller.dataset("event", {"crmId": "CRM"})
    out = await caller.dataset("union")
    await caller.create_batch(source, "two-files")
    for name in ("a", "b"):
        messages = upload_messages(source, "two-files", b'{"crmId": "1"}\n', file_name=name)
        await caller.datasets.UploadBatch(replay(messages), metadata=caller.metadata)
    await caller.complete("two-files")
    data = b"".join(b'{"crmId": %s}\n' % value for value in (b'"1"', b"true", b"false"))
    await caller.send(source, "rejects", data, max_bad_records=2)
    await caller.upload(web, "visits", VISITS)
    await caller.policy(IDENTITY_GRAPH_NONE)
    for _ in range(2):
        await caller.finished((await caller.job(out)).id)
    return {
        "ListDatasets": ds.ListDatasetsRequest(),
        "ListBatches": ds.ListBatchesRequest(dataset_id=source),
        "ListBatchFiles": ds.ListBatchFilesRequest(batch_id="two-files"),
        "ListRejectedRows": ds.ListRejectedRowsRequest(batch_id="rejects"),
        "ListSchemas": ss.ListSchemasRequest(),
        "ListMergePolicies": ps.ListMergePoliciesRequest(),
        "ListProfileEvents": ps.ListProfileEventsRequest(identity=KNOWN),
        "ListJobs": es.ListJobsRequest(),
    }


def page(caller: Caller, method: str, request: Any, token: str = "") -> Any:
    """Ask for a page of one item."""
    asked = type(request)()
    asked.CopyFrom(request)
    asked.page_size, asked.page_token = 1, token
    stubs: tuple[Any, ...] = (caller.datasets, caller.schemas, caller.profiles, caller.exports)
    [call] = [getattr(stub, method) for stub in stubs if hasattr(stub, method)]
    return call(asked, metadata=caller.metadata)


async def tokens_of(caller: Caller, requests: dict[str, Any]) -> dict[str, str]:
    return {
        method: (await page(caller, method, request)).next_page_token for method, request in requests.items()
    }


def assert_refused(refusal: Refusal) -> None:
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID")
    assert refusal.fields == ["page_token"]


@pytest_asyncio.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
async def start(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Start]:
    """Starts another server of one database, on SQLite in place of the one before."""
    async with AsyncExitStack() as open_ones:
        options: dict[str, Any] = {}
        if request.param == "postgresql":
            database = request.getfixturevalue("postgres").database(with_tables=True)
            options = {"database_url": await open_ones.enter_async_context(database)}
        servers: list[Application] = []

        async def one_more() -> Caller:
            if servers and not options:
                await servers.pop().stop()
            server = Application(load({**settings_for(tmp_path), **options}, {}))
            await server.start()
            servers.append(server)
            channel = grpc.aio.insecure_channel(f"127.0.0.1:{server.port}")
            return Caller(await open_ones.enter_async_context(channel), "org")

        yield one_more
        for server in servers:
            await server.stop()


@pytest.mark.slow
async def test_a_token_is_good_at_another_server_and_after_a_restart(start: Start) -> None:
    one = await start()
    requests = await stock(one)
    tokens = await tokens_of(one, requests)

    another = await start()

    assert all(tokens.values())
    for method, request in requests.items():
        first, second = (
            await page(another, method, request),
            await page(another, method, request, tokens[method]),
        )
        assert first.next_page_token == tokens[method]
        assert second.ListFields()[0] != first.ListFields()[0]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def stocked(channel: grpc.aio.Channel) -> tuple[Caller, dict[str, Any]]:
    caller = Caller(channel, "has-of-everything")
    return caller, await stock(caller)


async def test_a_token_is_refused_by_another_list_another_tenant_and_with_other_arguments(
    stranger: Caller, stocked: tuple[Caller, dict[str, Any]]
) -> None:
    caller, lists = stocked
    tokens = await tokens_of(caller, lists)

    for method, token in tokens.items():
        for other, request in lists.items():
            if other != method:
                assert_refused(await refusal_of(page(caller, other, request, token)))
    for method in ("ListDatasets", "ListBatches", "ListSchemas", "ListMergePolicies", "ListJobs"):
        assert_refused(await refusal_of(page(stranger, method, lists[method], tokens[method])))
    for method, field, value in [
        ("ListBatches", "dataset_id", ""),
        ("ListRejectedRows", "batch_id", "two-files"),
        ("ListBatchFiles", "batch_id", "rejects"),
        ("ListProfileEvents", "order_by", "event_time desc"),
        ("ListProfileEvents", "filter", "id = a"),
    ]:
        changed = type(lists[method])()
        changed.CopyFrom(lists[method])
        setattr(changed, field, value)
        assert_refused(await refusal_of(page(caller, method, changed, tokens[method])))


def tampered(token: str, dice: random.Random) -> list[str]:
    """What somebody might make of a token."""
    raw = b64decode(token, altchars=b"-_")
    at, bit = dice.randrange(len(raw)), dice.randrange(8)
    changed = [
        raw[:at] + bytes([raw[at] ^ 1 << bit]) + raw[at + 1 :],
        raw[:at],
        raw[16:],
        bytes(16) + raw[16:],
        raw + raw,
        raw + b"\0",
        dice.randbytes(len(raw)),
        b'["7", "x"]',
        b"[" * 5_000,
        b"\xff\xfe\xfd",
        token.encode(),
    ]
    written = [urlsafe_b64encode(one).decode() for one in changed]
    return [
        *written,
        token[:-1],
        token + "=",
        token + "A",
        f" {token}",
        token.swapcase(),
        "é",
        "日本",
        "9" * 5_000,
        "%",
        "=" * 8,
    ]


async def test_no_tampered_token_is_anything_but_refused(stocked: tuple[Caller, dict[str, Any]]) -> None:
    caller, lists = stocked
    dice = random.Random(7)
    for method, token in (await tokens_of(caller, lists)).items():
        for changed in tampered(token, dice):
            assert_refused(await refusal_of(page(caller, method, lists[method], changed)))
