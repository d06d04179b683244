"""Uploads by the command line: folders, bad rows, and what is left when a process or a line dies half-way."""

import asyncio
import gzip
import json
import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import duckdb
import pytest
from grpc import StatusCode
from grpc.aio import AioRpcError, Metadata

from profile_export.client import ClientError
from profile_export.client.calls import BackOff, checked
from tests.system.line import Line
from tests.system.terminal import COMMAND, Terminal, environment, served

CREATE = ("datasets", "create", "CRM", "--kind", "record", "--primary", "crmId=CRM")


def write(path: Path, rows: Sequence[object]) -> Path:
    """Write rows as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_bytes(path: Path, content: bytes) -> Path:
    """Write a file of any kind."""
    path.write_bytes(content)
    return path


def stored(terminal: Terminal, dataset_id: str, folder: Path, columns: str) -> list[tuple[object, ...]]:
    """Return what counts of a dataset, in the order in which it counts."""
    paths = terminal.get("datasets", "download", dataset_id, "--to", folder).splitlines()
    query = f"SELECT {columns} FROM read_parquet({paths}, union_by_name=true) ORDER BY _batch_id, _row"
    return duckdb.execute(query).fetchall()


@pytest.fixture
def exports(tmp_path: Path) -> Path:
    """A folder with a file of every format, whose names are no names for the server, and two that do not count."""
    folder = tmp_path / "exports"
    write(folder / "d 2.ndjson", [{"crmId": "d"}])
    write(folder / "deep" / "e.jsonl", [{"crmId": "e"}])
    write(folder / "a.json", [{"crmId": "a"}])
    (folder / "b&b.json").write_text(json.dumps([{"crmId": "b1"}, {"crmId": "b2"}], indent=2))
    (folder / "c.csv").write_text("crmId\nc\n")
    duckdb.execute(f"COPY (SELECT 'f' AS crmId) TO '{folder}/f.parquet' (FORMAT parquet)")
    write(folder / ".hidden" / "x.jsonl", [{"crmId": "x"}])
    (folder / "notes.txt").write_text("x")
    return folder


def test_a_folder_is_one_batch_with_the_rows_in_the_order_of_the_paths(
    terminal: Terminal, exports: Path, tmp_path: Path
) -> None:
    dataset_id = terminal.get(*CREATE)

    done = terminal.type("datasets", "upload", dataset_id, exports)

    line = done.stdout.strip()
    assert "Not taken: notes.txt." in done.stderr
    (batch,) = json.loads(terminal.get("batches", "list", dataset_id, "--json"))
    assert line.startswith(f"batch {batch['id']}: 7 rows, ")
    assert line.endswith(" rows/s)")
    assert [upload["file_name"] for upload in batch["uploads"]] == [
        "1-a.json",
        "2-b_b.json",
        "3-c.csv",
        "4-d_2.ndjson",
        "5-e.jsonl",
        "6-f.parquet",
    ]
    rows = stored(terminal, dataset_id, tmp_path / "out", "crmId, _row")
    assert rows == [(name, number) for number, name in enumerate(("a", "b1", "b2", "c", "d", "e", "f"))]


def test_files_named_again_or_in_another_order_are_the_same_batch(terminal: Terminal, exports: Path) -> None:
    dataset_id = terminal.get(*CREATE)
    first = terminal.get("datasets", "upload", dataset_id, exports / "a.json", exports / "c.csv")

    again = terminal.get(
        "datasets",
        "upload",
        dataset_id,
        exports / "c.csv",
        exports / "a.json",
        exports / "deep" / ".." / "c.csv",
    )

    assert again.endswith("(was there already)")
    assert again.split(":")[0] == first.split(":")[0]
    assert len(json.loads(terminal.get("batches", "list", dataset_id, "--json"))) == 1


async def start(
    terminal: Terminal, address: str, *words: str | Path, stderr: int
) -> asyncio.subprocess.Process:
    """Type a command and do not wait."""
    return await asyncio.create_subprocess_exec(
        *COMMAND,
        *map(str, words),
        "--sandbox",
        terminal.sandbox,
        env=environment(PROFILE_EXPORT_ADDRESS=address),
        stdout=asyncio.subprocess.PIPE,
        stderr=stderr,
    )


@pytest.mark.parametrize("several", [False, pytest.param(True, marks=pytest.mark.slow)])
async def test_an_upload_that_was_killed_half_way_is_repeated_and_every_row_is_there_once(
    terminal: Terminal, noise: Path, tmp_path: Path, *, several: bool
) -> None:
    # given an upload that is killed in the third megabyte, with several files in the middle of the second one
    dataset_id = terminal.get(*CREATE)
    first = write(tmp_path / "a.jsonl", [{"crmId": "A"}])
    upload = ("datasets", "upload", dataset_id, *((first, noise) if several else (noise,)))
    async with Line(terminal.address, stall_after=2_500_000) as line:
        command = await start(terminal, line.address, *upload, stderr=asyncio.subprocess.DEVNULL)
        async with asyncio.timeout(60):
            await line.stalled.wait()
        command.kill()
        await command.wait()
    assert terminal.get("batches", "list", dataset_id).startswith("No batches.")

    # when it is typed again, twice
    done = await asyncio.to_thread(terminal.get, *upload)
    again = await asyncio.to_thread(terminal.get, *upload)

    # then every row counts once
    rows = stored(terminal, dataset_id, tmp_path / "out", "crmId")
    people = [(f"C-{number}",) for number in range(20_000)]
    assert sorted(rows) == sorted([("A",), *people] if several else people)
    assert " rows/s)" in done
    assert again.endswith("(was there already)")


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.slow
async def test_an_upload_goes_on_when_its_server_is_started_again(
    noise: Path, tmp_path: Path, end: signal.Signals
) -> None:
    # given an upload of two files that has come to the third megabyte, at a terminal
    with served(tmp_path, "--drain-seconds", "0") as (server, address):
        terminal = Terminal(address, "prod")
        dataset_id = terminal.get(*CREATE)
        first = write(tmp_path / "a.jsonl", [{"crmId": "A"}])
        ours, theirs = os.openpty()
        async with Line(address, stall_after=2_500_000) as line:
            upload = ("datasets", "upload", dataset_id, first, noise)
            command = await start(terminal, line.address, *upload, stderr=theirs)
            os.close(theirs)
            shown = asyncio.create_task(asyncio.to_thread(read_all, ours))
            async with asyncio.timeout(60):
                await line.stalled.wait()

            # when the server ends and another one takes its place, which takes long enough to be told of it
            server.send_signal(end)
            await asyncio.to_thread(server.wait)
            line.cut()
            with served(tmp_path, "--grpc-address", address):
                printed, _ = await command.communicate()

                # then the upload goes on to its end, and says what it waits for
                assert command.returncode == 0, await shown
                assert ": 20,001 rows, " in printed.decode()
                assert "waiting for the server" in await shown
                rows = stored(terminal, dataset_id, tmp_path / "out", "crmId")
                assert sorted(rows) == sorted([("A",), *((f"C-{number}",) for number in range(20_000))])


async def test_patience_with_a_lost_server_begins_when_it_is_lost() -> None:
    # given a server that was heard of some time ago, and a client without any patience
    lost = ClientError("UNAVAILABLE", "", "gone")
    back_off = BackOff(timedelta(0))
    back_off.heard()

    # when it is lost, then there is one more try
    await back_off.wait(lost)

    # and not another one
    with pytest.raises(ClientError):
        await back_off.wait(lost)


BROKEN_OFF = AioRpcError(StatusCode.INTERNAL, Metadata(), Metadata(), details="Internal error from Core")


@pytest.mark.parametrize("told", [BROKEN_OFF, asyncio.CancelledError()], ids=["internal", "cancelled"])
async def test_a_call_that_ends_while_it_is_sent_is_a_lost_one(told: BaseException) -> None:
    # given what gRPC tells then, instead of what the server said
    async def ended() -> None:
        raise told

    with pytest.raises(ClientError) as caught:
        await checked(ended())

    assert caught.value.code == "UNAVAILABLE"


async def test_whoever_is_cancelled_while_he_waits_for_an_answer_is_cancelled() -> None:
    begun = asyncio.Event()

    async def never() -> None:
        begun.set()
        await asyncio.Event().wait()

    waiting = asyncio.create_task(checked(never()))
    await begun.wait()
    waiting.cancel()
    await asyncio.wait([waiting])

    assert waiting.cancelled()


def read_all(terminal: int) -> str:
    """Return what was shown on a terminal until its last writer is gone."""
    shown = b""
    try:
        while more := os.read(terminal, 65_536):
            shown += more
    except OSError:
        pass  # how a terminal says the end on Linux
    os.close(terminal)
    return shown.decode()


def test_rejected_rows_are_shown_beside_those_that_count(terminal: Terminal, tmp_path: Path) -> None:
    dataset_id = terminal.get(*CREATE)
    path = tmp_path / "crm.csv"
    path.write_text("crmId,city\nC-1,Oslo\n,Bergen\n")

    done = terminal.type("datasets", "upload", dataset_id, path, "--max-bad-records", "1")

    assert done.returncode == 0
    assert " 1 rows, " in done.stdout
    assert ", 1 rejected (" in done.stdout
    headers, row = (line.split("\t") for line in done.stderr.splitlines())
    assert headers == ["file", "row", "reason", "field", "why", "as sent"]
    assert (row[:3], row[-1]) == ([str(path), "2", "PRIMARY_IDENTITY_MISSING"], ",Bergen")
    batch_id = done.stdout.split(":")[0].removeprefix("batch ")
    assert "PRIMARY_IDENTITY_MISSING" in terminal.get("batches", "rejected", batch_id)


def test_a_refusal_shows_the_first_rejected_rows_and_how_to_see_the_rest(
    terminal: Terminal, tmp_path: Path
) -> None:
    # given a file with 30 bad rows
    dataset_id = terminal.get(*CREATE)
    path = write(tmp_path / "crm.jsonl", [{"name": f"nobody {number} \x1b[31m"} for number in range(30)])

    # when it is uploaded
    done = terminal.type(
        "datasets", "upload", dataset_id, path, "--max-bad-records", "5", "--batch-id", "bad"
    )

    # then 20 of them are told, without what they would do to a terminal
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("PRIMARY_IDENTITY_MISSING") == 20
    assert "\x1b" not in done.stderr
    hint, refusal = done.stderr.splitlines()[-2:]
    assert (
        hint
        == f"20 of 30 rejected rows; all: profile-export batches rejected bad --sandbox {terminal.sandbox}"
    )
    assert refusal.endswith("[ROW_REJECTED]")
    # and the rest is where the hint says
    assert terminal.get("batches", "rejected", "bad").count("PRIMARY_IDENTITY_MISSING") == 30
    assert "3 of 30 rejected rows" in terminal.get("batches", "rejected", "bad", "--limit", "3")
    listed = json.loads(terminal.get("batches", "rejected", "bad", "--limit", "2", "--json"))
    assert [row["row_number"] for row in listed] == ["1", "2"]


def test_a_refused_file_among_several_is_named_and_a_repetition_goes_on_with_the_batch(
    terminal: Terminal, tmp_path: Path
) -> None:
    # given two files, the second with a bad row
    dataset_id = terminal.get(*CREATE)
    good = write(tmp_path / "a.jsonl", [{"crmId": "a"}])
    bad = write(tmp_path / "b.jsonl", [{"crmId": "b"}, {"name": "nobody"}])

    # when they are uploaded, and again with patience for the row
    refused = terminal.type("datasets", "upload", dataset_id, good, bad)
    done = terminal.type("datasets", "upload", dataset_id, good, bad, "--max-bad-records", "1")

    # then the refusal names the file and leaves the batch open, which then counts
    assert refused.returncode == 1
    assert f"{bad}: Nothing was kept." in refused.stderr
    batch_id = refused.stderr.split("profile-export batches abort ")[1].split(" ")[0]
    assert done.stdout.startswith(f"batch {batch_id}: 2 rows, ")
    assert "1 rejected" in done.stdout


def test_bytes_that_are_not_of_the_format_are_refused(terminal: Terminal, tmp_path: Path) -> None:
    dataset_id = terminal.get(*CREATE)
    path = write(tmp_path / "crm.jsonl", [{"crmId": "C-1"}])

    refused = terminal.type("datasets", "upload", dataset_id, path, "--format", "parquet")
    done = terminal.get("datasets", "upload", dataset_id, path)

    assert refused.returncode == 1
    assert "[FILE_INVALID]" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert ": 1 rows, " in done


def test_an_unknown_suffix_or_an_empty_folder_says_what_to_do(terminal: Terminal, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")

    by_name = terminal.type("datasets", "upload", "x", tmp_path / "notes.txt")
    by_folder = terminal.type("datasets", "upload", "x", tmp_path)

    assert by_name.returncode == by_folder.returncode == 2
    assert "--format with one of json-lines, json-array, csv, tsv, parquet" in by_name.stderr
    assert (
        ".json, .jsonl, .ndjson, .jsonlines, .csv, .tsv, .tab, .parquet, .parq, .pq, or in one and .gz"
        in by_folder.stderr
    )


def test_a_batch_that_was_taken_back_needs_another_id(terminal: Terminal, exports: Path) -> None:
    # given a folder that was uploaded and taken back
    dataset_id = terminal.get(*CREATE)
    first = terminal.type("datasets", "upload", dataset_id, exports).stdout
    batch_id = first.split(":")[0].removeprefix("batch ")
    assert (
        terminal.get("batches", "revert", batch_id, "--reason", "wrong day") == f"batch {batch_id} REVERTED"
    )

    # when it is uploaded again
    refused = terminal.type("datasets", "upload", dataset_id, exports)
    done = terminal.type("datasets", "upload", dataset_id, exports, "--batch-id", "anew").stdout

    # then it needs a name of its own
    assert refused.returncode == 1
    assert "--batch-id" in refused.stderr
    assert done.startswith("batch anew: 7 rows, ")


def test_a_batch_with_files_that_nobody_names_any_more_is_not_completed(
    terminal: Terminal, tmp_path: Path
) -> None:
    # given a batch of three files of which the third was refused
    dataset_id = terminal.get(*CREATE)
    paths = [write(tmp_path / f"{name}.jsonl", [{"crmId": name}]) for name in "ab"]
    bad = write(tmp_path / "c.jsonl", [{}])
    upload = ("datasets", "upload", dataset_id, "--batch-id", "mine")
    assert terminal.type(*upload, *paths, bad).returncode == 1

    # when other files are uploaded under its id
    done = terminal.type(*upload, paths[0], write(tmp_path / "x.jsonl", [{"crmId": "x"}]))

    # then it stays open
    assert done.returncode == 1
    assert "also holds 2-b.jsonl" in done.stderr
    assert "LOADING" in terminal.get("batches", "show", "mine")


def test_a_batch_that_is_refused_as_a_whole_stays_open_and_says_so(
    terminal: Terminal, tmp_path: Path
) -> None:
    # given a dataset in which an age is a text
    other = terminal.get(*CREATE)
    terminal.get("datasets", "upload", other, write(tmp_path / "other.jsonl", [{"crmId": "o", "age": "40"}]))
    dataset_id = terminal.get(*CREATE)
    paths = [write(tmp_path / f"{name}.jsonl", [{"crmId": name, "age": 40}]) for name in "ab"]
    upload: list[str | Path] = ["datasets", "upload", dataset_id, *paths]

    # when two files say it is a number, and again when the other dataset is out of the way
    refused = terminal.type(*upload)
    terminal.get("datasets", "delete", other, "--yes")
    done = terminal.get(*upload)

    # then they are refused first, and count with the second try
    assert refused.returncode == 1
    assert "[FIELD_TYPE_CONFLICT]" in refused.stderr
    batch_id = refused.stderr.split("profile-export batches abort ")[1].split(" ")[0]
    assert done.startswith(f"batch {batch_id}: 2 rows, ")


# --- What can be taken ---


def test_packed_files_and_all_suffixes_are_taken_and_the_others_named(
    terminal: Terminal, tmp_path: Path
) -> None:
    # given a folder with files of all suffixes, some packed, one of several members, and some that are no rows
    folder = tmp_path / "all"
    folder.mkdir()
    members = [gzip.compress(text.encode()) for text in ("crmId\n", "a\n")]
    (folder / "a.csv.gz").write_bytes(b"".join(members))
    (folder / "b.tsv").write_text("crmId\tcity\nb\tOslo, Norway\n")
    (folder / "c.tab").write_text("\tcrmId\n0\tc\n")
    write(folder / "d.jsonlines", [{"crmId": "d"}])
    (folder / "e.json.gz").write_bytes(gzip.compress(json.dumps([{"crmId": "e"}]).encode()))
    duckdb.execute(f"COPY (SELECT 'f' AS crmId) TO '{folder}/f.pq' (FORMAT parquet)")
    for name in ("_SUCCESS", "notes.txt", "x.zip", "y.csv.bz2"):
        (folder / name).write_text("x")
    dataset_id = terminal.get(*CREATE)

    # when it is uploaded
    done = terminal.type("datasets", "upload", dataset_id, folder)

    # then all rows are there, and what was not taken or left out is told
    assert done.returncode == 0
    assert "Not taken: _SUCCESS, notes.txt, x.zip and 1 more." in done.stderr
    assert "3-c.tab: The first column has no name and was left out." in done.stderr
    assert stored(terminal, dataset_id, tmp_path / "out", "crmId, city") == [
        ("a", None),
        ("b", "Oslo, Norway"),
        ("c", None),
        ("d", None),
        ("e", None),
        ("f", None),
    ]


def test_standard_input_is_a_file_and_renames_and_placeholders_are_part_of_the_batch(
    terminal: Terminal, tmp_path: Path
) -> None:
    dataset_id = terminal.get(*CREATE)
    sent = b"id,city\n1,NULL\n2,Oslo\n"
    upload = ("datasets", "upload", dataset_id, "-", "--format", "csv", "--map", "id=crmId")

    first = terminal.type(*upload, "--null-value", "NULL", given=sent)
    again = terminal.type(*upload, "--null-value", "NULL", given=gzip.compress(sent))
    other = terminal.type(*upload, given=sent)

    assert "2 rows" in first.stdout
    assert "1 texts read as absent" in first.stdout
    assert "was there already" in again.stdout
    assert "was there already" not in other.stdout
    assert sorted(stored(terminal, dataset_id, tmp_path / "out", "crmId, city"), key=str) == [
        ("1", "NULL"),
        ("1", None),
        ("2", "Oslo"),
        ("2", "Oslo"),
    ]


def test_what_cannot_be_taken_is_refused_in_a_line(terminal: Terminal, tmp_path: Path) -> None:
    dataset_id = terminal.get(*CREATE)
    rows = gzip.compress(b"crmId\n" + b"x" * 300_000_000, 1)
    cut = write_bytes(tmp_path / "cut.csv.gz", rows[:10_000])
    bomb = write_bytes(tmp_path / "bomb.csv.gz", rows)
    partition = write(tmp_path / "hive" / "country=NL" / "a.jsonl", [{"crmId": "1"}]).parents[1]
    table = write_bytes(tmp_path / "people.csv", b"crmId;city\n1;Oslo\n")
    expected: dict[tuple[str | Path, ...], str] = {
        ("-",): "The format of standard input cannot be guessed",
        (cut,): "cut.csv.gz is no sound gzip file: it is damaged or cut off. Pack it anew.",
        (bomb,): "bomb.csv.gz unpacks to more than 200 times its size",
        (partition,): "lies in the folder country=NL, whose name holds the column 'country'",
        (table, "--map", "crmId"): "--map 'crmId' says no new name",
        (
            table,
            "--map",
            "a=b",
            "--map",
            "a=c",
        ): "--map 'a=c' says no new name, or one for a field that has one",
        (table,): "One column was found, 'crmId;city', where names of fields are expected with commas",
    }

    for arguments, line in expected.items():
        done = terminal.type("datasets", "upload", dataset_id, *arguments)

        assert done.returncode in {1, 2}
        assert line in done.stderr, arguments
        assert len(done.stderr.splitlines()) == 1
    assert json.loads(terminal.get("batches", "list", dataset_id, "--json")) == []


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("infer", [False, True])
def test_a_pipe_is_a_file_to_be_read_once(
    terminal: Terminal, tmp_path: Path, pack: Callable[[bytes], bytes], *, infer: bool
) -> None:
    dataset_id = terminal.get(*CREATE)
    pipe = tmp_path / "rows.json"
    os.mkfifo(pipe)
    sent = pack(b"crmId,age\n1,40\n2,41\n")
    upload = ("datasets", "upload", dataset_id, pipe)

    guessed = terminal.type(*upload)
    with ThreadPoolExecutor() as others:
        others.submit(pipe.write_bytes, sent)
        done = terminal.get(*upload, "--format", "csv", *(["--infer"] if infer else ()))

    assert "The format of rows.json cannot be guessed" in guessed.stderr
    assert "--declare age=long" in done if infer else "2 rows" in done


@pytest.mark.parametrize("named", [False, True])
def test_ctrl_c_ends_an_upload_that_waits_for_a_pipe(
    terminal: Terminal, tmp_path: Path, *, named: bool
) -> None:
    # given an upload that has read what a pipe, or standard input, has sent so far
    dataset_id = terminal.get(*CREATE)
    pipe = tmp_path / "rows"
    os.mkfifo(pipe)
    command = [*COMMAND, "datasets", "upload", dataset_id, str(pipe) if named else "-", "--format", "csv"]
    with subprocess.Popen(
        [*command, "--sandbox", terminal.sandbox],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(PROFILE_EXPORT_ADDRESS=terminal.address),
    ) as upload:
        assert upload.stdin
        with pipe.open("wb") if named else upload.stdin as sent:
            sent.write(b"crmId\n" + b"1\n" * 100_000)
            sent.flush()

            # when it is interrupted
            upload.send_signal(signal.SIGINT)

            # then it ends at once
            assert upload.wait(20) == 130
        assert upload.stderr
        assert upload.stderr.read() == b""


def test_where_a_command_is_typed_changes_nothing_about_a_folder_that_holds_a_column(
    terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset_id = terminal.get(*CREATE)
    inside = write(tmp_path / "country=NL" / "deep" / "a.jsonl", [{"crmId": "1"}]).parent

    for folder, path in ((tmp_path, "country=NL"), (inside.parent, "."), (inside, "a.jsonl"), (inside, "..")):
        monkeypatch.chdir(folder)
        done = terminal.type("datasets", "upload", dataset_id, path)

        assert "lies in the folder country=NL, whose name holds the column 'country'" in done.stderr, folder


def test_links_to_folders_and_to_nothing_are_named(terminal: Terminal, tmp_path: Path) -> None:
    dataset_id = terminal.get(*CREATE)
    write(tmp_path / "real" / "a.jsonl", [{"crmId": "a"}])
    folder = write(tmp_path / "folder" / "b.jsonl", [{"crmId": "b"}]).parent
    (folder / "linked").symlink_to(tmp_path / "real")
    (folder / "broken.csv").symlink_to(tmp_path / "nowhere.csv")
    (folder / "c.jsonl").symlink_to(write(tmp_path / "other.jsonl", [{"crmId": "c"}]))
    (folder / "notes.txt").write_text("x")

    done = terminal.type("datasets", "upload", dataset_id, folder)

    assert "2 rows" in done.stdout
    files, others = done.stderr.splitlines()
    assert "Not taken: notes.txt. Their suffixes say no format" in files
    assert "Not taken: broken.csv, linked. They are no files; links to folders are not followed" in others


def test_a_download_names_batches_that_count_no_more_and_prunes_them_when_asked(
    terminal: Terminal, tmp_path: Path
) -> None:
    # given two batches that were downloaded, of which one is reverted then, beside a folder of somebody's own
    dataset_id = terminal.get(*CREATE)
    for name in ("one", "two"):
        path = write(tmp_path / f"{name}.jsonl", [{"crmId": name}])
        terminal.get("datasets", "upload", dataset_id, path, "--batch-id", name)
    out = tmp_path / "out"
    download = ("datasets", "download", dataset_id, "--to", out)
    terminal.get(*download)
    write(out / "mine" / "x.parquet", [])
    write(out / "one" / "notes.txt", [])
    terminal.get("batches", "revert", "one")

    # when it is downloaded again
    told = terminal.type(*download)
    kept = {path.name for path in out.iterdir()}
    pruned = terminal.type(*download, "--prune")

    # then the former batch is named, and removed only when asked, but for what no download wrote
    assert f"{out / 'one'} counts no more, its batch is REVERTED" in told.stderr
    assert kept == {"mine", "one", "two"}
    assert "Removed the files of" in pruned.stderr
    assert [path.name for path in (out / "one").iterdir()] == ["notes.txt"]
    assert (out / "mine" / "x.parquet").exists()


def test_a_download_without_a_file_says_so(terminal: Terminal, tmp_path: Path) -> None:
    dataset_id = terminal.get(*CREATE)
    terminal.get("datasets", "upload", dataset_id, write(tmp_path / "none.jsonl", []))
    download = ("datasets", "download", dataset_id, "--to", tmp_path / "out")

    plain, as_json = terminal.type(*download), terminal.type(*download, "--json")

    assert (plain.returncode, plain.stdout) == (0, "")
    assert plain.stderr == "profile-export: No row, and so no file.\n"
    assert (json.loads(as_json.stdout), as_json.stderr) == ([], "")


def test_types_are_found_and_told_as_a_command_that_declares_them(terminal: Terminal, tmp_path: Path) -> None:
    # given a file whose columns hold values of all types, some of them absent
    path = tmp_path / "people.csv"
    path.write_text(
        "id,age,zip,price,member,born,seen,o.n,big,mixed,exact,ticks,tags[]\n"
        "1,40,0150,9.50,true,1999-12-31,2026-01-31 10:00:00+00,1,9007199254740993,1,12345678901234567.89,"
        "2026-01-31T10:00:00.1234567Z,1\n"
        "id,age,zip,price,member,born,seen,o.n,big,mixed,exact,ticks,tags[]\n"
        "2,-,1150,7,FALSE,,2026-01-31T10:00:00.5Z,2,1,x,0.1,2026-01-31T10:00:00Z,2\n"
        "3,x\n"
    )
    dataset_id = terminal.get(*CREATE)
    options = ("--map", "id=crmId", "--null-value", "-", "--max-bad-records", "2")

    # when they are looked for, and the command that is printed is typed
    as_json = json.loads(terminal.get("datasets", "upload", dataset_id, path, *options, "--infer", "--json"))
    printed = terminal.get("datasets", "upload", dataset_id, path, *options, "--infer")
    none = json.loads(terminal.get("batches", "list", dataset_id, "--json"))
    terminal.get(*printed.split()[1:])
    terminal.type("datasets", "upload", dataset_id, path, *options)
    again = terminal.type("datasets", "upload", dataset_id, path, *options, "--infer")

    # then nothing was uploaded before, and the rows have these types, with every digit
    assert printed.endswith(
        " --declare age=long --declare price=double --declare member=boolean --declare born=date"
        f" --declare seen=timestamp --declare o.n=long --declare big=long --sandbox {terminal.sandbox}"
    )
    assert as_json["dataset_id"] == dataset_id
    assert as_json["add_declared_fields"][0] == {"path": "age", "type": {"scalar": "SCALAR_TYPE_LONG"}}
    assert f"--declare {as_json['add_declared_fields'][-1]['path']}=long --sandbox" in printed
    assert none == []
    [first, _] = stored(
        terminal, dataset_id, tmp_path / "out", "age, zip, price, member, born::text, o.n, big, mixed, exact"
    )
    assert first == (40, "0150", 9.5, True, "1999-12-31", 1, 9007199254740993, "1", "12345678901234567.89")
    assert (again.stdout, again.returncode) == ("", 0)
    assert "Nothing to declare" in again.stderr


@pytest.mark.parametrize(
    ("name", "sent", "reason"),
    [
        (
            "a.csv",
            b"crmId;age\n1;40\n",
            "one column was found, 'crmId;age', with other marks than ',' in it.",
        ),
        (
            "a.tsv",
            b"crmId,age\n1,40\n",
            "one column was found, 'crmId,age', with other marks than '\\t' in it.",
        ),
        ("a.csv", b"crmId,age\r1,40\r", "its lines end in CR alone."),
        ("a.csv", "crmId,age\n1,40\n".encode("utf-16"), "it is not UTF-8."),
        ("a.csv", b"", "it has no header."),
    ],
)
def test_no_types_are_found_in_a_file_that_an_upload_would_refuse(
    terminal: Terminal, tmp_path: Path, name: str, sent: bytes, reason: str
) -> None:
    dataset_id = terminal.get(*CREATE)

    done = terminal.type("datasets", "upload", dataset_id, write_bytes(tmp_path / name, sent), "--infer")

    assert (done.returncode, done.stdout) == (2, "")
    assert reason in done.stderr
