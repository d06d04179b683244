"""The command line against a real server, both as processes."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import duckdb
import pytest

from profile_export.client import (
    Client,
    DatasetKind,
    IdentityField,
    IdentityGraph,
    JobState,
    UploadFormat,
)

COMMAND = (sys.executable, "-m", "profile_export")
RECORD, EVENT, UNION = (
    DatasetKind.DATASET_KIND_RECORD,
    DatasetKind.DATASET_KIND_EVENT,
    DatasetKind.DATASET_KIND_UNION,
)


@dataclass(frozen=True)
class Terminal:
    """Somebody who types commands for one server, as one tenant."""

    address: str
    sandbox: str

    def type(self, *words: str | Path, to: str = "") -> subprocess.CompletedProcess[str]:
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("PROFILE_EXPORT_")
        }
        environment["PROFILE_EXPORT_ADDRESS"] = to or self.address
        server = ("--sandbox", self.sandbox) if words[0] != "serve" else ()
        return subprocess.run(
            [*COMMAND, *map(str, words), *server],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def get(self, *words: str | Path) -> str:
        done = self.type(*words)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.strip()


@pytest.fixture(scope="session")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    serve = ("serve", "--data-dir", str(folder / "data"), "--grpc-address", "127.0.0.1:0")
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen([*COMMAND, *serve], stdout=subprocess.PIPE, stderr=log, text=True) as server,
    ):
        try:
            assert server.stdout is not None
            first_line = server.stdout.readline()
            assert first_line.startswith("listening on "), (folder / "log").read_text()
            yield first_line.removeprefix("listening on ").strip()
        finally:
            server.terminate()
    assert server.returncode == 0, (folder / "log").read_text()


@pytest.fixture
def terminal(address: str, request: pytest.FixtureRequest) -> Terminal:
    """A terminal with a tenant of its own, so that tests share the server and nothing else."""
    return Terminal(address, sha256(request.node.nodeid.encode()).hexdigest()[:16])


@pytest.fixture
def crm(tmp_path: Path) -> Path:
    path = tmp_path / "crm.jsonl"
    people = [
        {
            "crmId": "C-1",
            "personalEmail": {"address": "ada@example.com"},
            "person": {"name": {"lastName": "Adler"}},
        },
        {
            "crmId": "C-2",
            "personalEmail": {"address": "ben@example.com"},
            "person": {"name": {"lastName": "Bos"}},
        },
    ]
    path.write_text("".join(json.dumps(person) + "\n" for person in people))
    return path


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    path = tmp_path / "shop.jsonl"
    path.write_text(
        '{"personalEmail": {"address": "ada@example.com"}, "person": {"name": {"firstName": "Ada"}}}\n'
    )
    return path


@pytest.fixture
def visits(tmp_path: Path) -> Path:
    path = tmp_path / "visits.ndjson"
    events = [
        {
            "_id": f"e-{number}",
            "timestamp": f"2025-03-0{number}T10:00:00Z",
            "identityMap": {"Email": [{"id": "ada@example.com", "primary": True}]},
            "eventType": "web.webpagedetails.pageViews",
        }
        for number in (1, 2, 3)
    ]
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    return path


def test_the_whole_tour_from_files_to_a_merged_download(
    terminal: Terminal, crm: Path, shop: Path, visits: Path, tmp_path: Path
) -> None:
    # given three sources
    crm_id = terminal.get(
        "datasets", "create", "CRM", "--kind", "record", "--primary", "crmId=CRM", "--identity",
        "personalEmail.address=Email",
    )  # fmt: skip
    shop_id = terminal.get(
        "datasets", "create", "Shop", "--kind", "record", "--primary", "personalEmail.address=Email"
    )
    web_id = terminal.get("datasets", "create", "Web", "--kind", "event")
    for dataset_id, path in ((crm_id, crm), (shop_id, shop), (web_id, visits)):
        assert " rows, " in terminal.get("datasets", "upload", dataset_id, path)

    # when they are exported and downloaded
    policy = terminal.get("policies", "create", "--graph", "pdg", "--name", "one row per person")
    union = terminal.get("datasets", "create", "Merged", "--kind", "union")
    watched = terminal.get("jobs", "create", "--to", union, "--policy", policy, "--events", "--watch")
    paths = terminal.get("datasets", "download", union, "--to", tmp_path / "out").splitlines()

    # then the watch told the story, and the rows are one per person
    assert "PROCESSING → SUCCEEDED" in watched
    assert "2 of 2 exported" in watched
    columns = "crmId, person.name.firstName, person.name.lastName, len(timeSeriesEvents)"
    rows = duckdb.execute(f"SELECT {columns} FROM read_parquet({paths}) ORDER BY 1").fetchall()
    assert rows[0] == ("C-1", "Ada", "Adler", 3)
    assert rows[1][:3] == ("C-2", None, "Bos")


def test_everything_to_be_listed_or_looked_up_comes_as_json_too(terminal: Terminal, crm: Path) -> None:
    source = json.loads(
        terminal.get("datasets", "create", "CRM", "--kind", "record", "--primary", "crmId=CRM", "--json")
    )
    upload = json.loads(terminal.get("datasets", "upload", source["id"], crm, "--json"))
    union = terminal.get("datasets", "create", "Merged", "--kind", "union")
    job = json.loads(terminal.get("jobs", "create", "--to", union, "--field", "crmId", "--json"))

    watched = terminal.type("jobs", "watch", job["id"], "--json")

    assert upload["batch"]["state"] == "BATCH_STATE_SUCCEEDED"
    assert json.loads(watched.stdout)["state"] == "JOB_STATE_SUCCEEDED"
    assert json.loads(terminal.get("jobs", "get", job["id"], "--json"))["spec"]["fields"] == ["crmId"]
    assert [one["id"] for one in json.loads(terminal.get("jobs", "list", "--json"))] == [job["id"]]
    assert [one["name"] for one in json.loads(terminal.get("datasets", "list", "--json"))] == [
        "CRM",
        "Merged",
    ]
    assert [one["built_in"] for one in json.loads(terminal.get("policies", "list", "--json"))] == [True]


def test_tables_hold_one_line_per_thing(terminal: Terminal) -> None:
    union = terminal.get("datasets", "create", "Merged", "--kind", "union")

    lines = terminal.get("datasets", "list").splitlines()

    assert lines[0].split() == ["id", "kind", "created", "name"]
    assert lines[1].split()[:2] == [union, "union"]
    assert len(lines) == 2
    assert terminal.get("jobs", "list").startswith("No jobs.")
    assert "timestampOrdered-none-mp" in terminal.get("policies", "list")


def test_commands_are_safe_to_repeat(terminal: Terminal, crm: Path, tmp_path: Path) -> None:
    create = (
        "datasets",
        "create",
        "CRM",
        "--kind",
        "record",
        "--primary",
        "crmId=CRM",
        "--request-id",
        "one",
    )
    dataset_id = terminal.get(*create)
    terminal.get("datasets", "upload", dataset_id, crm)
    terminal.get("datasets", "download", dataset_id, "--to", tmp_path / "out")

    again = terminal.get("datasets", "upload", dataset_id, crm)
    paths = terminal.get("datasets", "download", dataset_id, "--to", tmp_path / "out").splitlines()

    assert terminal.get(*create) == dataset_id
    assert again.endswith("(was there already)")
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == [
        Path(path) for path in paths
    ]


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["datasets", "create", "CRM", "--kind", "table"], "'record', 'event', 'union'"),
        (["datasets", "create", "CRM", "--kind", "record", "--primary", "crmId"], "--primary 'crmId'"),
        (["jobs", "create"], "--to"),
        (["jobs", "create", "--to", "x", "--events-from", "yesterday"], "2026-01-31T00:00:00Z"),
        (["jobs", "get", "seven"], "ID"),
        (["datasets", "upload", "x", __file__], "--format"),
        (["datasets", "frobnicate"], "frobnicate"),
        (["--nonsense"], "--nonsense"),
        (["serve", "--data-dir", "x", "--grpc-address", "nowhere"], "nowhere"),
        (["serve", "--data-dir", "x", "--grpc-address", "0.0.0.0:0"], "--insecure"),
    ],
)
def test_a_wrong_option_is_one_line_and_exit_2(terminal: Terminal, words: list[str], hint: str) -> None:
    done = terminal.type(*words)

    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert hint in done.stderr


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["datasets", "download", "0" * 24, "--to", "out"], "DATASET_NOT_FOUND"),
        (["jobs", "create", "--to", "0" * 24], "DATASET_NOT_FOUND"),
        (["jobs", "get", "404"], "JOB_NOT_FOUND"),
        (["jobs", "watch", "404"], "JOB_NOT_FOUND"),
        (["jobs", "cancel", "404"], "JOB_NOT_FOUND"),
    ],
)
def test_a_refusal_of_the_server_is_one_line_and_exit_1(
    terminal: Terminal, words: list[str], reason: str
) -> None:
    done = terminal.type(*words)

    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert reason in done.stderr


def test_a_refused_row_is_named_and_nothing_of_the_file_counts(terminal: Terminal, tmp_path: Path) -> None:
    dataset_id = terminal.get("datasets", "create", "CRM", "--kind", "record", "--primary", "crmId=CRM")
    path = tmp_path / "crm.jsonl"
    path.write_text('{"crmId": "C-1"}\n{"name": "nobody"}\n')

    done = terminal.type("datasets", "upload", dataset_id, path)

    assert done.returncode == 1
    assert "2" in done.stderr
    assert "[ROW_REJECTED]" in done.stderr
    assert "no visible batch" in terminal.type("datasets", "download", dataset_id, "--to", tmp_path).stderr


def test_a_missing_server_is_said_with_the_way_out(terminal: Terminal) -> None:
    done = terminal.type("datasets", "list", to="127.0.0.1:1")

    assert done.returncode == 1
    assert "No server answers at 127.0.0.1:1" in done.stderr
    assert "profile-export serve" in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        "",
        "serve",
        "demo",
        *(f"datasets {verb}" for verb in ("create", "list", "upload", "download")),
        *(f"jobs {verb}" for verb in ("create", "list", "get", "cancel", "watch")),
        *(f"policies {verb}" for verb in ("create", "list")),
    ],
)
def test_every_command_has_help_with_an_example(words: str) -> None:
    done = subprocess.run([*COMMAND, *words.split(), "--help"], capture_output=True, text=True, check=False)

    assert done.returncode == 0
    assert f"profile-export {words}".strip() in done.stdout.split("Usage:")[1].split("\n", 1)[1]


class BrokenLine:
    """A connection to a server that breaks each time so many bytes have gone one way, a given number of times."""

    def __init__(self, address: str, *, breaks: int, after_bytes: int) -> None:
        self._host, port = address.rsplit(":", 1)
        self._port = int(port)
        self._breaks = breaks
        self._after = after_bytes
        self.broken = 0
        self._joins: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> str:
        self._server = await asyncio.start_server(
            lambda *ends: self._joins.append(asyncio.create_task(self._join(*ends))), "127.0.0.1", 0
        )
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await asyncio.gather(*self._joins)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(self._host, self._port)
        ways = [
            asyncio.create_task(self._copy(reader, far_writer)),
            asyncio.create_task(self._copy(far_reader, writer)),
        ]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        for end in (writer, far_writer):
            end.close()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        copied = 0
        with suppress(ConnectionError):
            while data := await reader.read(65_536):
                copied += len(data)
                if copied > self._after and self.broken < self._breaks:
                    self.broken += 1
                    return
                writer.write(data)
                await writer.drain()


async def test_uploads_downloads_and_watches_outlive_a_line_that_breaks(
    terminal: Terminal, tmp_path: Path
) -> None:
    # given a file of some megabytes, and a line that breaks three times within them
    path = tmp_path / "crm.jsonl"
    with path.open("w") as lines:
        for number in range(20_000):
            noise = "".join(sha256(f"{number} {part}".encode()).hexdigest() for part in range(4))
            lines.write(json.dumps({"crmId": f"C-{number}", "note": noise}) + "\n")
    line = BrokenLine(terminal.address, breaks=3, after_bytes=1_500_000)
    primary = IdentityField(path="crmId", namespace="CRM", primary=True)

    async with line as address, Client(address, sandbox=terminal.sandbox) as client:
        # when it is uploaded, exported and downloaded through it
        source = await client.create_dataset("CRM", RECORD, identities=[primary])
        uploaded: list[int] = []
        answer = await client.upload(
            source.id, path, UploadFormat.UPLOAD_FORMAT_JSON_LINES, progress=uploaded.append
        )
        breaks_of_upload = line.broken
        union = await client.create_dataset("Merged", UNION)
        policy = await client.create_policy("pdg", IdentityGraph.IDENTITY_GRAPH_PDG)
        job = (await client.create_job(union.id, policy_id=policy.id)).job
        messages = [message async for message in client.watch_job(job.id, after_revision=0)]
        files = await client.list_files(job.batch_id)
        paths = [await client.download(job.batch_id, file, tmp_path / "out") for file in files]

    # then nothing is lost or doubled, and not every try began at the beginning
    assert breaks_of_upload >= 1
    assert line.broken == 3
    assert answer.batch.rows == 20_000
    assert uploaded.count(1_048_576) <= breaks_of_upload
    revisions = [transition.revision for message in messages for transition in message.transitions]
    assert revisions == [1, 2, 3]
    assert messages[-1].job.state == JobState.JOB_STATE_SUCCEEDED
    assert sum(file.rows for file in files) == 20_000
    assert [sha256(one.read_bytes()).hexdigest() for one in paths] == [file.sha256 for file in files]
