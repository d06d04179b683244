"""What to export, on the command line: segments, estimates."""

import json
from pathlib import Path
from typing import Any

import duckdb
import pytest

from tests.system.terminal import Terminal


@pytest.fixture
def union(terminal: Terminal, tmp_path: Path) -> str:
    """A destination beside three people: two in `gold`, one of them in `vip` of the namespace AAM, too."""
    gold = {"ups": {"gold": {"status": "realized"}}}
    memberships: list[dict[str, Any]] = [gold | {"AAM": {"vip": {"status": "exited"}}}, gold, {}]
    people = [
        {"crmId": f"C-{number}", "segmentMembership": spaces} for number, spaces in enumerate(memberships)
    ]
    path = tmp_path / "crm.jsonl"
    path.write_text("".join(json.dumps(person) + "\n" for person in people))
    crm = terminal.get("datasets", "create", "CRM", "--kind", "record", "--primary", "crmId=CRM")
    terminal.get("datasets", "upload", crm, path)
    return terminal.get("datasets", "create", "Merged", "--kind", "union")


def test_each_segment_gets_a_batch_of_its_own(terminal: Terminal, union: str, tmp_path: Path) -> None:
    created = terminal.get(
        "jobs", "create", "--to", union, "--segment", "gold", "--segment", "aam:vip", "--status", "realized",
        "--status", "exited", "--batch-per-segment", "--policy", "timestampOrdered-none-mp", "--watch",
    )  # fmt: skip
    downloaded = terminal.get("datasets", "download", union, "--to", tmp_path / "out").splitlines()

    assert "2 of 3 exported" in created
    assert "in no segment asked for 1" in created
    rows = duckdb.execute(
        f"SELECT crmId, count(*) FROM read_parquet({downloaded}) GROUP BY 1 ORDER BY 1"
    ).fetchall()
    assert rows == [("C-0", 2), ("C-1", 1)]
    batches = [line.split()[-1] for line in created.splitlines() if line.startswith("batch")]
    assert batches == ["ups:gold", "aam:vip"]


def test_an_estimate_says_what_would_come_and_how_exact_it_is(terminal: Terminal, union: str) -> None:
    shown = terminal.get(
        "jobs",
        "estimate",
        "--to",
        union,
        "--segment",
        "gold",
        "--field",
        "crmId",
        "--field",
        "crmid",
        "--rows",
        "1",
    )
    whole = json.loads(terminal.get("jobs", "estimate", "--to", union, "--segment", "never", "--json"))

    lines = [line.split() for line in shown.splitlines()]
    assert ["profiles", "2", "exact"] in lines
    assert "No source has the field crmid; the nearest is crmId." in shown
    assert shown.rstrip().endswith("]")
    assert '"crmId": "C-' in shown
    assert whole["profiles"]["exactness"] == "EXACTNESS_EXACT"
    assert whole["notes"] == ["No profile has an entry for the segment 'never' of the namespace 'ups'."]
    assert json.loads(terminal.get("jobs", "list", "--json")) == []


def test_a_job_keeps_the_longest_time_it_may_take(terminal: Terminal, union: str) -> None:
    created = json.loads(terminal.get("jobs", "create", "--to", union, "--max-run-time", "12h", "--json"))

    assert created["spec"]["max_run_time"] == "43200s"


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--segment", "gold", "--status", "leaving"], "realized, existing, exited"),
        (["--status", "realized"], "--segment"),
        (["--segment", "gold", "--newer-than", "soon"], "--newer-than 'soon'"),
        (["--max-run-time", "12 hours"], "--max-run-time '12 hours'"),
    ],
)
def test_what_cannot_be_read_is_one_line_and_exit_2(terminal: Terminal, words: list[str], hint: str) -> None:
    done = terminal.type("jobs", "create", "--to", "x", *words)

    assert (done.returncode, done.stdout) == (2, "")
    assert hint in done.stderr
