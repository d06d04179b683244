"""A client in another language: Node with @grpc/grpc-js, from the protos alone."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import secrets
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow.parquet as pq
import pytest

from profile_export.app import Application

pytestmark = pytest.mark.asyncio(loop_scope="session")

TOUR = Path(__file__).parent / "node" / "tour.mjs"


def installed_node() -> str:
    """Return the path of Node, with the tour's packages installed. Without them skip; on CI fail."""
    node = shutil.which("node")
    if node and (TOUR.parent / "node_modules" / "@grpc" / "grpc-js").exists():
        return node
    what = "the Node tour's packages are not installed: run `make test`" if node else "Node is not installed"
    if os.environ.get("CI"):
        pytest.fail(f"{what}; on CI this test has to run")
    pytest.skip(what)


async def take_the_tour(port: int, sandbox: str) -> tuple[int | None, str, str]:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        installed_node(), TOUR, f"127.0.0.1:{port}", sandbox, stdout=pipe, stderr=pipe
    )
    output, errors = await process.communicate()
    return process.returncode, output.decode(), errors.decode()


def rows_of(tour: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        row for file in tour["files"] for row in pq.read_table(urlsplit(file["location"]).path).to_pylist()
    ]


async def test_node_takes_the_whole_tour_from_the_protos_alone(application: Application) -> None:
    code, output, errors = await take_the_tour(application.port, f"node-{secrets.token_hex(6)}")

    assert (code, errors) == (0, "")
    tour = json.loads(output)
    assert tour["uploaded"] == [
        {"id": "crm-1", "state": "BATCH_STATE_SUCCEEDED", "rows": 2},
        {"id": "shop-1", "state": "BATCH_STATE_SUCCEEDED", "rows": 1},
    ]
    assert tour["moves"] == [[1, "JOB_STATE_NEW"], [2, "JOB_STATE_PROCESSING"], [3, "JOB_STATE_SUCCEEDED"]]
    assert (tour["profiles_exported"], tour["profiles_merged"]) == (2, 1)
    for file in tour["files"]:
        content = await asyncio.to_thread(Path(file["location"].removeprefix("file://")).read_bytes)
        assert (len(content), hashlib.sha256(content).hexdigest()) == (file["bytes"], file["sha256"])
    names = {row["crmId"]: row["person"]["name"] for row in rows_of(tour)}
    assert names == {
        "C-1": {"firstName": "Ada", "lastName": "Adler"},
        "C-2": {"firstName": None, "lastName": "Bos"},
    }


async def test_the_tour_repeated_doubles_nothing(application: Application) -> None:
    sandbox = f"node-{secrets.token_hex(6)}"
    _, first, _ = await take_the_tour(application.port, sandbox)

    code, second, errors = await take_the_tour(application.port, sandbox)

    assert (code, errors) == (0, "")
    assert json.loads(second) == json.loads(first)


async def test_a_refusal_reaches_the_client_as_one_line(application: Application) -> None:
    code, output, errors = await take_the_tour(application.port, "no such sandbox!")

    assert (code, output) == (1, "")
    assert errors.startswith("tour: 3 INVALID_ARGUMENT")
    assert errors.count("\n") == 1
