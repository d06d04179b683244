"""The command line against a real server, both as processes."""

import asyncio
import json
import os
import subprocess
from hashlib import sha256
from pathlib import Path

import duckdb
import pytest
from typer.testing import CliRunner

from profile_export.cli import app
from profile_export.client import (
    Client,
    DatasetKind,
    IdentityField,
    JobState,
    UploadFormat,
    UploadPhase,
    UploadProgress,
    WatchJobResponse,
    export_spec,
)
from tests.system.line import Line, received
from tests.system.terminal import COMMAND, Terminal, environment


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


def test_the_receipt_of_an_export_says_what_was_read_and_written(terminal: Terminal, crm: Path) -> None:
    # given an export, and a batch of nothing
    source = terminal.get("datasets", "create", "CRM", "--kind", "record", "--primary", "crmId=CRM")
    empty = terminal.get("datasets", "create", "Nobody", "--kind", "union")
    assert terminal.type("jobs", "create", "--to", empty, "--watch").returncode == 0
    terminal.get("datasets", "upload", source, crm, "--batch-id", "people")
    union = terminal.get("datasets", "create", "Merged", "--kind", "union")
    assert terminal.type("jobs", "create", "--to", union, "--watch").returncode == 0
    [nothing], [batch] = [
        json.loads(terminal.get("batches", "list", dataset_id, "--json")) for dataset_id in (empty, union)
    ]

    # when their receipts are looked at
    shown = [" ".join(line.split()) for line in terminal.get("batches", "receipt", batch["id"]).splitlines()]
    told = json.loads(terminal.get("batches", "receipt", batch["id"], "--json"))
    of_nothing = terminal.get("batches", "receipt", nothing["id"])
    of_an_upload = terminal.type("batches", "receipt", "people")

    # then they say it, to people and to programs
    [file] = told["files"]
    assert {f"batch {batch['id']}", "profiles 2 of 2 exported", "CRM 2"} <= set(shown)
    assert "policy timestampOrdered-none-mp version 1: TIMESTAMP_ORDERED, graph NONE" in shown
    assert any(line.startswith(f"{source} people 2 ") for line in shown)
    assert any(line.startswith(file["name"]) and line.endswith(file["sha256"]) for line in shown)
    assert [one["batch_id"] for one in told["input_batches"]] == ["people"]
    assert "No batch was there to read." in of_nothing
    assert "No row, and so no file." in of_nothing
    assert "RECEIPT_NOT_FOUND" in of_an_upload.stderr


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
    assert json.loads(terminal.get("jobs", "show", job["id"], "--json"))["spec"]["fields"] == ["crmId"]
    assert [one["id"] for one in json.loads(terminal.get("jobs", "list", "--json"))] == [job["id"]]
    assert [one["name"] for one in json.loads(terminal.get("datasets", "list", "--json"))] == [
        "CRM",
        "Merged",
    ]
    assert [one["built_in"] for one in json.loads(terminal.get("policies", "list", "--json"))] == [True]


def test_tables_hold_one_line_per_thing(terminal: Terminal) -> None:
    union = terminal.get("datasets", "create", "Merged", "--kind", "union")

    lines = terminal.get("datasets", "list").splitlines()

    assert lines[0].split() == ["id", "kind", "rows", "size", "newest", "batch", "name"]
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
        (["jobs", "show", "seven"], "ID"),
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
        (["jobs", "show", "404"], "JOB_NOT_FOUND"),
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
        *(f"batches {verb}" for verb in ("list", "show", "rejected", "complete", "abort", "revert")),
        *(
            f"datasets {verb}"
            for verb in (
                "create",
                "list",
                "show",
                "update",
                "delete",
                "undelete",
                "preview",
                "upload",
                "download",
            )
        ),
        *(f"jobs {verb}" for verb in ("create", "list", "show", "cancel", "watch")),
        *(f"policies {verb}" for verb in ("create", "list", "show", "update", "delete")),
        *(f"schemas {verb}" for verb in ("register", "list", "show", "union")),
    ],
)
def test_every_command_has_help_with_an_example(words: str) -> None:
    done = CliRunner().invoke(app, [*words.split(), "--help"], prog_name="profile-export")

    assert done.exit_code == 0
    assert f"profile-export {words}".strip() in done.stdout.split("Usage:")[1].split("\n", 1)[1]


async def test_an_upload_that_was_cut_goes_on_where_it_was(terminal: Terminal, noise: Path) -> None:
    # given an upload that has got through to its second megabyte
    primary = IdentityField(path="crmId", namespace="CRM", primary=True)
    async with (
        Client(terminal.address, sandbox=terminal.sandbox) as near,
        Line(terminal.address, stall_after=1_500_000) as line,
        Client(line.address, sandbox=terminal.sandbox) as far,
    ):
        source = await near.create_dataset("CRM", DatasetKind.DATASET_KIND_RECORD, identities=[primary])
        batch_id, told = sha256(source.id.encode()).hexdigest(), list[UploadProgress]()
        lines = UploadFormat.UPLOAD_FORMAT_JSON_LINES
        upload = asyncio.create_task(
            far.upload(source.id, noise, lines, batch_id=batch_id, progress=told.append)
        )
        while await received(near, batch_id) == 0:
            pass

        # when its line is cut
        line.cut()
        batch = (await upload).batch

        # then it arrives whole, and what had got through was not sent again
        assert (batch.id, batch.rows) == (batch_id, 20_000)
        lost = [one.phase for one in told].index(UploadPhase.WAITING)
        resumed = next(one for one in told[lost:] if one.phase is UploadPhase.SENDING)
        assert resumed.bytes >= 1_048_576
        assert told[-1].bytes > 5_000_000


async def test_a_watch_and_a_download_that_were_cut_go_on_where_they_were(
    terminal: Terminal, noise: Path, tmp_path: Path
) -> None:
    primary = IdentityField(path="crmId", namespace="CRM", primary=True)
    async with (
        Client(terminal.address, sandbox=terminal.sandbox) as near,
        Line(terminal.address) as line,
        Client(line.address, sandbox=terminal.sandbox) as far,
    ):
        # given an export
        source = await near.create_dataset("CRM", DatasetKind.DATASET_KIND_RECORD, identities=[primary])
        await near.upload(source.id, noise, UploadFormat.UPLOAD_FORMAT_JSON_LINES)
        union = await near.create_dataset("Merged", DatasetKind.DATASET_KIND_UNION)
        job = (await near.create_job(export_spec(union.id))).job

        # when the line is cut after the first message of the watch, and after the first bytes of the download
        messages: list[WatchJobResponse] = []
        async for message in far.watch_job(job.id, after_revision=0):
            if not messages:
                line.cut()
            messages.append(message)
        (file,) = await near.list_files(job.batch_id)
        fetched: list[int] = []

        def note(done: int) -> None:
            if not fetched:
                line.cut()
            fetched.append(done)

        path = await far.download(job.batch_id, file, tmp_path, progress=note)

    # then every transition came once, and every byte
    revisions = [transition.revision for message in messages for transition in message.transitions]
    assert revisions == list(range(1, messages[-1].revision + 1))
    assert messages[-1].job.state == JobState.JOB_STATE_SUCCEEDED
    assert fetched == sorted(set(fetched))
    assert fetched[-1] == file.bytes > 2_000_000
    assert sha256(path.read_bytes()).hexdigest() == file.sha256
    assert [one.name for one in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("line", ["datasets list", "datasets list --json", "policies create --graph pdg"])
def test_output_that_nobody_takes_ends_a_command_with_one_line_or_none(terminal: Terminal, line: str) -> None:
    command = [*COMMAND, *line.split(), "--sandbox", terminal.sandbox, "--address", terminal.address]
    reader, writer = os.pipe()
    os.close(reader)

    with Path("/dev/full").open("w") as full, os.fdopen(writer, "w") as gone:
        disk, pipe = (
            subprocess.run(
                command, check=False, stdout=out, stderr=subprocess.PIPE, text=True, env=environment()
            )
            for out in (full, gone)
        )

    assert (disk.returncode, disk.stderr) == (1, "profile-export: Error: No space left on device\n")
    assert (pipe.returncode, pipe.stderr) == (1, "")


def test_a_name_steers_no_terminal(terminal: Terminal, tmp_path: Path) -> None:
    document = {"$id": "https://x.org/s", "type": "object", "title": "Title\x1b[31m"}
    (tmp_path / "schema.json").write_text(json.dumps(document))
    terminal.get("datasets", "create", "CRM\x1b[31m\x1b]0;owned\a", "--kind", "record")
    terminal.get("schemas", "register", tmp_path / "schema.json")

    shown = terminal.get("datasets", "list") + terminal.get("schemas", "list")

    assert "CRM" in shown
    assert "Title" in shown
    assert "\x1b" not in shown
