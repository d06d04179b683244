"""The tour with grpcurl, which knows nothing but what reflection tells it."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import re
import secrets
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from profile_export.app import Application
from tests.service.harness import CHUNK, SCHEMAS, json_lines

pytestmark = pytest.mark.asyncio(loop_scope="session")

GRPCURL = Path(sys.executable).parent / "grpcurl"
PEOPLE = 12_000
Message = dict[str, Any]


class Grpcurl:
    """Somebody with grpcurl and no protos, as a tenant of their own."""

    def __init__(self, port: int) -> None:
        self._address = f"127.0.0.1:{port}"
        self._tenant = f"x-gw-ims-org-id: grpcurl-{secrets.token_hex(6)}"

    async def call(self, method: str, *requests: Message) -> list[Message]:
        """Call a method with these messages, and return those that came back."""
        output = await self._run("-d", "@", method=f"profile_export.v1.{method}", requests=requests)
        return list(messages_in(output))

    async def one(self, method: str, *requests: Message) -> Message:
        (answer,) = await self.call(method, *requests)
        return answer

    async def services(self) -> list[str]:
        return (await self._run(method="list")).split()

    async def _run(self, *options: str, method: str, requests: Iterable[Message] = ()) -> str:
        words = ("-plaintext", "-H", self._tenant, "-max-msg-sz", str(8 * CHUNK), *options)
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            GRPCURL, *words, self._address, method, stdin=pipe, stdout=pipe, stderr=pipe
        )
        output, errors = await process.communicate("\n".join(map(json.dumps, requests)).encode())
        assert (process.returncode, errors.decode()) == (0, "")
        return output.decode()


def messages_in(text: str) -> Iterable[Message]:
    """Read JSON objects that stand one after the other. Some grpcurls write `batchId`, others `batch_id`."""
    decoder = json.JSONDecoder(object_hook=lambda found: {snake_case(key): found[key] for key in found})
    while text := text.lstrip():
        message, end = decoder.raw_decode(text)
        yield message
        text = text[end:]


def snake_case(name: str) -> str:
    return re.sub("[A-Z]", lambda letter: f"_{letter[0].lower()}", name)


def noise(number: int) -> str:
    return "".join(hashlib.sha512(f"{number} {part}".encode()).hexdigest() for part in "ab")


def upload(dataset_id: str, data: bytes) -> list[Message]:
    """The messages of an upload; JSON writes bytes in base64."""
    start = {"dataset_id": dataset_id, "format": "UPLOAD_FORMAT_JSON_LINES", "batch_id": "crm-1"}
    chunks = [data[at : at + CHUNK] for at in range(0, len(data), CHUNK)]
    finish = {"byte_count": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    return [
        {"start": start},
        *({"data": base64.b64encode(chunk).decode()} for chunk in chunks),
        {"finish": finish},
    ]


async def test_grpcurl_takes_the_whole_tour_with_reflection_alone(application: Application) -> None:
    # given a dataset, filled by an upload of several messages with what no compression makes small
    grpcurl = Grpcurl(application.port)
    services = await grpcurl.services()
    crm = {
        "name": "CRM",
        "schema_ref": {"id": SCHEMAS["record"]},
        "identity_fields": [{"path": "crmId", "namespace": "CRM", "primary": True}],
    }
    merged = {"name": "Merged", "schema_ref": {"id": SCHEMAS["union"]}}
    source = (await grpcurl.one("DatasetService/CreateDataset", crm))["dataset"]["id"]
    target = (await grpcurl.one("DatasetService/CreateDataset", merged))["dataset"]["id"]
    people = {f"C-{number}": noise(number) for number in range(PEOPLE)}
    data = json_lines({"crmId": crm_id, "note": note} for crm_id, note in people.items())
    uploaded = await grpcurl.one("DatasetService/UploadBatch", *upload(source, data))

    # when a job exports it, watched from its first revision to the end
    spec = {"destination": {"dataset_id": target}}
    created = (await grpcurl.one("ExportService/CreateJob", {"spec": spec, "request_id": "once"}))["job"]
    watched = await grpcurl.call("ExportService/WatchJob", {"job_id": created["id"], "after_revision": 0})
    listed = await grpcurl.one("DatasetService/ListBatchFiles", {"batch_id": created["batch_id"]})
    fetched = []
    for file in listed["files"]:
        request = {"batch_id": created["batch_id"], "file_name": file["name"]}
        fetched.append((file, await grpcurl.call("DatasetService/ReadBatchFile", request)))

    # then nothing was missing on the way, and the bytes are those that the service vouches for
    assert {f"profile_export.v1.{name}Service" for name in ("Dataset", "Export", "Profile", "Schema")} <= {
        *services
    }
    assert uploaded["batch"]["state"] == "BATCH_STATE_SUCCEEDED"
    moves = [move for message in watched for move in message.get("transitions", ())]
    assert [(int(move["revision"]), move["to_state"]) for move in moves] == [
        (1, "JOB_STATE_NEW"),
        (2, "JOB_STATE_PROCESSING"),
        (3, "JOB_STATE_SUCCEEDED"),
    ]
    assert int(watched[-1]["job"]["metrics"]["profiles_exported"]) == PEOPLE
    read: dict[str, str] = {}
    for file, (facts, *chunks) in fetched:
        content = b"".join(base64.b64decode(chunk["data"]) for chunk in chunks)
        assert facts["file"] == file
        assert hashlib.sha256(content).hexdigest() == file["sha256"]
        assert len(content) == int(file["bytes"])
        rows = pq.read_table(io.BytesIO(content)).to_pylist()
        read |= {row["crmId"]: row["note"] for row in rows}
    assert sum(len(chunks) for _, (_, *chunks) in fetched) > 1
    assert read == people
