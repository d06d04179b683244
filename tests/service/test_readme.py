"""The README, taken at its word: its commands run as they stand, and what it says is not built is what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import grpc.aio
import pytest

from profile_export.v1 import (
    dataset_service_pb2,
    export_service_pb2,
    profile_service_pb2,
    schema_service_pb2,
)
from tests.service.pages import ROOT, Block, page, run, served
from tests.service.test_node import installed_node

CONTRACT = (dataset_service_pb2, export_service_pb2, profile_service_pb2, schema_service_pb2)
NODE_BLOCK = "With Node"
REPEATED_BLOCK = "With grpcurl"


def readme() -> tuple[list[Block], dict[str, str]]:
    return page("README.md")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where a server listens that was started as the README says, on a port of its own."""
    with served(tmp_path_factory.mktemp("readme")) as listening:
        yield listening


@pytest.mark.timeout(300)  # types thirty commands
@pytest.mark.slow
def test_the_tour_runs_as_it_stands_and_shows_what_the_readme_shows(address: str, tmp_path: Path) -> None:
    # given every block to be typed, and those again that are said to be safe to repeat
    blocks, _ = readme()
    typed = [block for block in blocks if block.language == "sh" and block.heading != NODE_BLOCK]
    again = [block for block in typed if block.heading == REPEATED_BLOCK]
    assert again
    shown = [block for block in blocks if block.language == "text" and block.heading == "Read the output"]

    # when they are typed
    printed = run([*typed, *again], address, tmp_path)

    # then the output is there
    assert "PROCESSING → SUCCEEDED" in printed
    assert "2 of 2 exported" in printed
    lines = [line for block in shown for line in block.text.splitlines()]
    assert lines
    for line in lines:
        assert line in printed
    assert "'timeSeriesEvents'" in printed
    # The download has the hash that ListBatchFiles names, and repeating gives the same job and file.
    told = re.findall(r'"sha256": "([0-9a-f]{64})"', printed)
    fetched = re.findall(r"^([0-9a-f]{64})  \S+people\.parquet$", printed, re.MULTILINE)
    assert fetched == told
    assert len(fetched) == 2
    assert len(set(fetched)) == 1


def test_the_node_tour_runs_as_it_stands(address: str, tmp_path: Path) -> None:
    installed_node()
    blocks, _ = readme()

    printed = run(
        [block for block in blocks if block.language == "sh" and block.heading == NODE_BLOCK],
        address,
        tmp_path,
    )

    assert json.loads(printed)["profiles_exported"] == 2


async def test_the_methods_that_are_not_built_are_those_that_the_readme_names(address: str) -> None:
    _, prose = readme()
    listed = prose["Not built yet"].split("- Methods:")[1].split("\n- ")[0]

    refused: set[str] = set()
    async with grpc.aio.insecure_channel(address) as channel:
        for contract in CONTRACT:
            for service in contract.DESCRIPTOR.services_by_name.values():
                for method in service.methods:
                    code = await code_of(channel, f"/{service.full_name}/{method.name}")
                    if code is grpc.StatusCode.UNIMPLEMENTED:
                        refused.add(method.name)

    assert set(re.findall(r"`(\w+)`", listed)) == refused


async def code_of(channel: grpc.aio.Channel, path: str) -> grpc.StatusCode:
    """Send one empty message; whatever kind of method it is, the wire is the same."""
    call: grpc.aio.StreamStreamCall[bytes, bytes] = channel.stream_stream(path)()
    await call.write(b"")
    await call.done_writing()
    try:
        answered = await call.read() is not grpc.aio.EOF
    except grpc.aio.AioRpcError:
        answered = False
    if answered:
        call.cancel()  # there are streams that do not end
        return grpc.StatusCode.OK
    return await call.code()


def test_the_places_that_the_readme_names_are_there() -> None:
    text = (ROOT / "README.md").read_text()

    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / target).exists(), target
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|\$ )make ([a-z-]+)", text)) <= targets
