"""How the command line writes answers and reads what is typed: times, data, names, pipes, terminals, servers."""

import json
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import threading
from fcntl import ioctl
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Task, TextColumn

from profile_export.cli.terminal.output import Bars
from tests.system.terminal import COMMAND, Terminal, environment

RECORDS = ("--kind", "record", "--primary", "id=CRM")


@pytest.fixture
def people(tmp_path: Path) -> Path:
    path = tmp_path / "people.jsonl"
    path.write_text('{"id": "C-1", "note": "urn:id:7 00:1a:cd:ab [red]x[/red] :smile: a  b"}\n')
    return path


def rows(shown: str) -> list[dict[str, str]]:
    """Read columns between tabs."""
    headers, *lines = (line.split("\t") for line in shown.splitlines())
    return [dict(zip(headers, line, strict=True)) for line in lines]


# --- Times ---


@pytest.mark.parametrize(
    ("zone", "offset"), [("America/New_York", "-0[45]:00"), ("Asia/Tokyo", r"\+09:00"), ("UTC", r"\+00:00")]
)
def test_a_time_that_was_shown_is_the_same_when_it_is_typed(
    terminal: Terminal, people: Path, zone: str, offset: str
) -> None:
    # given a person, and whoever looks when it came
    source = terminal.get("datasets", "create", "CRM", *RECORDS)
    terminal.get("datasets", "create", "Merged", "--kind", "union")
    terminal.get("datasets", "upload", source, people)
    [batch] = rows(terminal.get("batches", "list", source, TZ=zone))
    assert re.search(rf"T[0-9:.]+{offset}$", batch["ingested"])

    # when that time is typed
    estimate = ("jobs", "estimate", "--to", "Merged", "--newer-than", batch["ingested"], "--json")
    estimated = json.loads(terminal.get(*estimate, TZ=zone))

    # then nothing is newer
    assert estimated["profiles"]["value"] == "0"


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("2026-01-31T00:00:00", "2026-01-31T09:00:00+09:00"),
        ("2026-01-31", "does not say in which zone"),
        ("2026-01-31T00:00:00.1234567Z", "has digits behind the microsecond, 7: leave them out."),
        (
            "2026-01-31T00:00:00,12345600010+09:00",
            "has digits behind the microsecond, 00010: leave them out.",
        ),
        ("yesterday", "is no time"),
        ("0001-01-01T00:00:00+14:00", "within the years 1 to 9999"),
        ("9999-12-31T23:59:59-01:00", "within the years 1 to 9999"),
    ],
)
def test_a_time_that_is_none_or_might_be_another_is_refused_with_the_right_form(
    terminal: Terminal, text: str, hint: str
) -> None:
    done = terminal.type("profiles", "events", "CRM:C-1", "--from", text)

    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert repr(text) in done.stderr
    assert hint in done.stderr


def test_the_first_and_the_last_times_there_are_can_be_typed_and_shown(
    terminal: Terminal, tmp_path: Path
) -> None:
    web = terminal.get("datasets", "create", "Web", "--kind", "event")
    first, last = "0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999Z"
    event = (
        '{{"_id": "{0}", "timestamp": "{0}", "identityMap": {{"CRM": [{{"id": "C-1", "primary": true}}]}}}}\n'
    )
    (tmp_path / "web.jsonl").write_text(event.format("2026-01-01T00:00:00Z"))
    terminal.get("datasets", "upload", web, tmp_path / "web.jsonl")

    for zone in ("America/New_York", "Asia/Tokyo"):
        shown = terminal.get("profiles", "events", "CRM:C-1", "--from", first, "--to", last, TZ=zone)
        assert rows(shown)[0]["time"].startswith(("2025-12-31T19:00:00-05:00", "2026-01-01T09:00:00+09:00"))


# --- Data ---


def test_data_is_shown_as_it_is(terminal: Terminal, people: Path) -> None:
    name = "urn:id:7 00:1a:cd:ab [red]x[/red] :smile: a  b"
    source = terminal.get("datasets", "create", name, *RECORDS, "--description", name)
    terminal.get("datasets", "upload", source, people)

    [listed] = rows(terminal.get("datasets", "list"))
    assert listed["name"] == name
    assert f"name\t{name}" in terminal.get("datasets", "show", source).splitlines()
    assert f"description\t{name}" in terminal.get("datasets", "show", source).splitlines()
    assert name in [row["value"] for row in rows(terminal.get("datasets", "preview", source))]
    assert name in terminal.get("profiles", "show", "CRM:C-1")
    assert name in on_a_terminal(terminal, 160, "datasets", "list")
    assert name in on_a_terminal(terminal, 120, "datasets", "show", source)


# --- Pipes and terminals ---


def on_a_terminal(terminal: Terminal, width: int, *words: str) -> str:
    """Type a command on a terminal of so many columns; return what it shows, without colours."""
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
    variables = environment(PROFILE_EXPORT_ADDRESS=terminal.address, TERM="xterm", NO_COLOR="1", COLUMNS="")
    command = [*COMMAND, *words, "--sandbox", terminal.sandbox]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=variables):
        os.close(theirs)
        shown = b""
        try:
            while more := os.read(ours, 65_536):
                shown += more
        except OSError:
            pass  # how a terminal says the end on Linux
    os.close(ours)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode()).replace("\r\n", "\n")


def test_nothing_is_cut_on_a_narrow_terminal_and_nothing_padded_in_a_pipe(
    terminal: Terminal, people: Path
) -> None:
    # given a dataset with a long name, and a batch with a long id
    name = "A name that takes more room than there is on a terminal of 60 columns, and then some"
    source = terminal.get("datasets", "create", name, *RECORDS)
    batch_id = "b" * 64
    terminal.get("datasets", "upload", source, people, "--batch-id", batch_id)

    # when they are shown
    narrow, wide = (on_a_terminal(terminal, width, "datasets", "list") for width in (60, 120))
    batches = on_a_terminal(terminal, 60, "batches", "list", source)
    piped = terminal.get("batches", "list", source)

    # then ids stand in one piece, names are whole, lines fit, and a pipe has numbers in digits
    for shown in (narrow, wide):
        assert source in shown
        assert re.sub(r"\s+", "", name) in re.sub(r"\s+", "", shown)
    assert max(map(len, wide.splitlines())) <= 120
    assert batch_id in batches
    [row] = rows(piped)
    assert (row["id"], row["rows"], row["files"]) == (batch_id, "1", "1")
    assert row["size"].isdigit()
    assert "  " not in piped


def test_where_there_is_no_terminal_progress_is_a_line_now_and_then() -> None:
    # given bars that go to a file
    told, one = StringIO(), threading.Event()

    def line(task: Task) -> str:
        if told.getvalue():
            one.set()
        return f"{task.completed:.0f} done"

    # when a task moves
    with Bars(TextColumn(""), screen=Console(file=told), line=line, first=0.01, every=0.01) as bars:
        bars.update(bars.add_task("", total=9), completed=4)
        assert one.wait(10)

    # then it is told
    assert told.getvalue().splitlines()[0] == "4 done"


@pytest.mark.parametrize(
    "words", ["jobs create", "jobs watch", "datasets create", "policies show", "contexts set", "serve", ""]
)
def test_the_help_names_no_types(terminal: Terminal, words: str) -> None:
    shown = terminal.get(*words.split(), "-h") if words else terminal.get("-h")

    assert not re.search(r"<\w+>|INTEGER|RANGE|lambda|Enum|<=", shown)


def test_the_version_can_be_asked_for(terminal: Terminal) -> None:
    assert re.fullmatch(r"profile-export [0-9.]+\n", run("--version").stdout)


# --- Names ---


def test_a_name_does_where_an_id_does_unless_two_have_it(terminal: Terminal, people: Path) -> None:
    # given datasets and a policy with names
    source = terminal.get("datasets", "create", "CRM", *RECORDS)
    first = terminal.get("datasets", "create", "People", "--kind", "union")
    policy = terminal.get("policies", "create", "--graph", "pdg", "--name", "linked", "--order", "CRM")

    # when they are named
    terminal.get("datasets", "upload", "CRM", people)
    job = terminal.get("jobs", "create", "--to", "People", "--policy", "linked")
    terminal.type("jobs", "watch", job)

    # then it is as if their ids were given
    shown = json.loads(terminal.get("jobs", "show", job, "--json"))
    assert shown["spec"]["destination"]["dataset_id"] == first
    assert shown["spec"]["merge_policy"]["id"] == policy
    assert json.loads(terminal.get("policies", "show", "linked", "--json"))["attribute_merge"]["order"] == [
        source
    ]
    assert [row["rows"] for row in rows(terminal.get("batches", "list", "CRM"))] == ["1"]

    # and a name that nothing or more than one has is refused
    second = terminal.get("datasets", "create", "People", "--kind", "union")
    several = terminal.type("jobs", "create", "--to", "People")
    mistyped = [terminal.type("datasets", "show", name) for name in ("CRN", "crm", "Crn")]
    assert (several.returncode, several.stderr.count("\n")) == (2, 1)
    assert first in several.stderr
    assert second in several.stderr
    assert [done.returncode for done in mistyped] == [1, 1, 1]
    assert all("nearest is 'CRM'" in done.stderr for done in mistyped)

    # and one that only a deleted one has is told as that
    terminal.get("datasets", "delete", "CRM", "--yes")
    deleted = terminal.type("datasets", "upload", "CRM", people)
    assert "A deleted one has this name: `profile-export datasets list --deleted` shows it." in deleted.stderr


def test_jobs_are_listed_by_state_destination_and_time(terminal: Terminal) -> None:
    # given a job of each of two destinations
    one, two = (terminal.get("datasets", "create", name, "--kind", "union") for name in ("One", "Two"))
    watched = [terminal.type("jobs", "create", "--to", to, "--watch", "--json").stdout for to in (one, two)]
    first, second = (json.loads(job) for job in watched)
    first_id, second_id = first["id"], second["id"]

    def listed(*words: str) -> list[str]:
        return [job["id"] for job in json.loads(terminal.get("jobs", "list", "--json", *words))]

    assert listed() == [second_id, first_id]
    assert listed("--to", "One") == [first_id]
    assert listed("--since", second["create_time"]) == [second_id]
    assert listed("--state", "succeeded", "--limit", "1") == [second_id]
    assert listed("--state", "failed", "--state", "cancelled") == []
    assert terminal.type("jobs", "list", "--state", "gone").returncode == 2


# --- Servers ---


def run(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Type a command as nobody in particular."""
    return subprocess.run(
        [*COMMAND, *words], capture_output=True, text=True, check=False, env=environment(**variables)
    )


def test_variables_name_the_tenant_and_mistyped_ones_are_refused(terminal: Terminal) -> None:
    terminal.get("datasets", "create", "CRM", "--kind", "record")
    there = {"PROFILE_EXPORT_ADDRESS": terminal.address}

    seen = run("datasets", "list", **there, PROFILE_EXPORT_SANDBOX=terminal.sandbox)
    elsewhere = run(
        "datasets", "list", **there, PROFILE_EXPORT_SANDBOX=terminal.sandbox, PROFILE_EXPORT_ORG="x"
    )
    mistyped = run("datasets", "list", **there, PROFILE_EXPORT_SANBOX=terminal.sandbox)
    setting = run("serve", "--data-dir", "x", PROFILE_EXPORT_MEMORY_LIMIT="512")

    assert "CRM" in seen.stdout
    assert elsewhere.stdout.startswith(
        f"No datasets. Nobody has written any to sandbox {terminal.sandbox} of organisation x"
    )
    assert mistyped.returncode == setting.returncode == 2
    assert "PROFILE_EXPORT_SANDBOX" in mistyped.stderr
    assert "PROFILE_EXPORT_MEMORY_LIMIT_MB" in setting.stderr


@pytest.mark.slow
def test_a_context_names_server_and_tenant_until_something_else_does(
    terminal: Terminal, tmp_path: Path
) -> None:
    # given two contexts
    terminal.get("datasets", "create", "CRM", "--kind", "record")
    home = {"XDG_CONFIG_HOME": str(tmp_path)}
    assert run("contexts", "list", **home).stdout.startswith("No contexts.")
    run("contexts", "set", "far", "--address", "127.0.0.1:1", **home)
    run("contexts", "set", "here", "--address", terminal.address, "--sandbox", terminal.sandbox, **home)

    # when they are used
    far = run("datasets", "list", **home)
    used = run("contexts", "use", "here", "--json", **home)
    here, chosen = (run(*words, "datasets", "list", **home) for words in ((), ("--sandbox", "other")))

    # then each names its server, and an option beats it
    assert "127.0.0.1:1" in far.stderr
    assert json.loads(used.stdout)["sandbox"] == terminal.sandbox
    assert "CRM" in here.stdout
    assert "CRM" not in chosen.stdout
    assert [(row["in use"], row["name"]) for row in rows(run("contexts", "list", **home).stdout)] == [
        ("", "far"),
        ("*", "here"),
    ]
    assert json.loads(run("contexts", "show", "--json", **home).stdout)["name"] == "here"
    assert run("contexts", "use", "nowhere", **home).returncode == 2
    run("contexts", "remove", "here", **home)
    assert run("contexts", "show", **home).returncode == 2

    # and a file that is damaged is refused with its place
    [file] = tmp_path.rglob("*.json")
    file.write_text('{"contexts": []}')
    assert str(file) in run("datasets", "list", **home).stderr


@pytest.mark.parametrize(
    "words",
    [
        "jobs show 99999999999999999999",
        "jobs watch 0",
        "policies show x --version 99999999999999999999",
        "datasets list --address nowhere",
        "datasets list --address 127.0.0.1:99999",
        "datasets list --address ",
        "datasets list --sandbox a\x07b",
        "datasets list --org é",
        "--sandbox \n datasets list",
    ],
)
def test_what_no_server_takes_is_refused_in_one_line(words: str) -> None:
    done = run(*words.split(" "))

    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


def test_an_argument_that_is_no_text_is_refused_in_one_line(terminal: Terminal) -> None:
    words = ["datasets", "create", "caf\udce9", "--kind", "record", "--address", terminal.address]

    done = run(*words)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "profile-export: 'caf\\udce9' cannot be written in utf-8.\n"


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-", ">&- <&- 2>&-"])
def test_a_command_whose_output_is_closed_says_so_if_it_can(closed: str) -> None:
    line = f"{' '.join(COMMAND)} datasets list {closed}"

    done = subprocess.run(["sh", "-c", line], check=False, capture_output=True, text=True, env=environment())

    assert done.returncode == 1
    assert done.stderr.count("\n") == ("2>&-" not in closed)


def test_whoever_stops_a_watch_is_told_that_the_job_goes_on(terminal: Terminal) -> None:
    # given a watch of a job that does not end: its server is stopped
    union = terminal.get("datasets", "create", "Merged", "--kind", "union")
    command = [*COMMAND, "jobs", "create", "--to", union, "--watch", "--sandbox", terminal.sandbox]
    variables = environment(PROFILE_EXPORT_ADDRESS=terminal.address)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=variables
    ) as watch:
        assert watch.stdout
        assert watch.stderr
        assert "NEW" in watch.stdout.readline()

        # when it is interrupted
        watch.send_signal(signal.SIGINT)
        errors = watch.stderr.read()

    # then that is told, with the way back
    if watch.returncode == 130:  # not ended yet
        assert re.search(rf"goes on.* jobs watch \d+ --sandbox {terminal.sandbox} .* jobs cancel \d+", errors)
