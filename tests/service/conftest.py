"""One server for all service tests of a process: each test is a tenant of its own."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import grpc.aio
import pytest
import pytest_asyncio

from profile_export.app import Application
from profile_export.config import load
from tests.service.harness import Caller

# What these run through, others run through as well.
UNTRACED = {
    "test_adobe_merge_example",
    "test_cancel",
    "test_clients",
    "test_disks",
    "test_evolution",
    "test_grpcurl",
    "test_guide_payloads",
    "test_leftovers",
    "test_node",
    "test_profiles",
    "test_reading_the_output",
    "test_readme",
    "test_real_csv",
    "test_real_data",
    "test_refusals",
    "test_schema_examples",
    "test_semantics",
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.stem in UNTRACED:
            item.add_marker(pytest.mark.untraced)


def settings_for(data_dir: Path) -> dict[str, str | bool | None]:
    return {"data_dir": str(data_dir), "grpc_address": "127.0.0.1:0", "threads": "1", "drain_seconds": "1"}


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def application(data_dir: Path) -> AsyncIterator[Application]:
    server = Application(load(settings_for(data_dir), {}))
    await server.start()
    yield server
    await server.stop()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def channel(application: Application) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{application.port}") as opened:
        yield opened


@pytest.fixture
def caller(channel: grpc.aio.Channel) -> Caller:
    return Caller(channel, f"org-{secrets.token_hex(6)}")


@pytest.fixture
def stranger(channel: grpc.aio.Channel) -> Caller:
    return Caller(channel, f"org-{secrets.token_hex(6)}")
