"""A newcomer who does what the messages say, and nothing else, ends with a correct export."""

from __future__ import annotations

import re
from pathlib import Path

import duckdb
import pytest

from tests.system.terminal import Terminal

CRM = """,customer_id,name,email,signed_up
0,C-1,Ada,ada@example.com,2026-01-31 10:00:00+00:00
1,C-2,Ben,ben@example.com,2026-02-01 09:30:00+01:00
"""
SHOP = """mail;city;spent
ada@example.com;London;12.50
NULL;Oslo;3.00
"""
CLICKS = """{"event_id": "e1", "ts": "2026-03-01T10:00:00Z", "mail": "ada@example.com", "page": "/"}
{"event_id": "e2", "ts": "2026-03-01T10:05:00Z", "mail": "ben@example.com", "page": "/cart"}
"""
NO_PRIMARY = (
    "The row has no primary identity: mark one in its identityMap, or create the dataset with the field that holds one "
    "declared as its primary identity."
)


def refused(terminal: Terminal, *words: str | Path) -> str:
    """Type a command that fails, and return the line that says why."""
    done = terminal.type(*words)
    assert done.returncode in {1, 2}
    assert done.stdout == ""
    return done.stderr.splitlines()[-1].removeprefix("profile-export: ")


def told(terminal: Terminal, *words: str | Path) -> tuple[str, str]:
    """Type a command that succeeds, and return what it prints and what it notes."""
    done = terminal.type(*words)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@pytest.mark.slow
def test_the_messages_lead_from_three_files_to_a_correct_export(terminal: Terminal, tmp_path: Path) -> None:
    crm, shop, clicks = (tmp_path / name for name in ("crm.csv", "shop.csv", "clicks.jsonl"))
    for path, text in ((crm, CRM), (shop, SHOP), (clicks, CLICKS)):
        path.write_text(text)

    # There is nothing yet.
    assert told(terminal, "datasets", "list")[0].endswith(
        "Make one: profile-export datasets create NAME --kind record\n"
    )
    first = terminal.get("datasets", "create", "CRM", "--kind", "record")

    # The rows say who they are in a column that nobody has declared.
    assert refused(terminal, "datasets", "upload", "CRM", crm) == (
        f"Nothing was kept. row 1: {NO_PRIMARY} `profile-export datasets create NAME --primary FIELD=NAMESPACE …` "
        "declares one; --max-bad-records N sets rows without one aside. [ROW_REJECTED]"
    )
    made = ("--primary", "customer_id=CRM", "--identity", "email=Email")
    second = terminal.get("datasets", "create", "CRM", "--kind", "record", *made)

    # Two have that name now.
    ambiguous = refused(terminal, "datasets", "upload", "CRM", crm)
    assert re.sub(r" \(created [^)]+\)", "", ambiguous) == (
        f"Invalid value: 2 datasets have the name 'CRM', give the id of one: {first}, {second}."
    )
    assert refused(terminal, "datasets", "delete", first) == (
        "Invalid value: There is no terminal to ask on: add --yes to delete without being asked."
    )
    assert (
        f"profile-export datasets undelete {first}" in told(terminal, "datasets", "delete", first, "--yes")[0]
    )
    uploaded, note = told(terminal, "datasets", "upload", "CRM", crm)
    assert ": 2 rows, " in uploaded
    assert note == "profile-export: The first column has no name and was left out.\n"

    # Another file has semicolons, and a text for what is not there.
    terminal.get("datasets", "create", "Shop", "--kind", "record", "--primary", "mail=Email")
    assert refused(terminal, "datasets", "upload", "Shop", shop) == (
        "Nothing was kept. One column was found, 'mail;city;spent', where names of fields are expected with commas "
        "between them: the file has semicolons there. Write it with commas. [FILE_INVALID]"
    )
    shop.write_text(SHOP.replace(";", ","))
    nobody = ("--null-value", "NULL", "--max-bad-records", "1")
    uploaded, _ = told(terminal, "datasets", "upload", "Shop", shop, *nobody)
    assert ": 1 rows, " in uploaded
    assert ", 1 rejected, 1 texts read as absent" in uploaded

    # Events have names of their own for what every event needs.
    terminal.get("datasets", "create", "Web", "--kind", "event", "--primary", "mail=Email")
    assert refused(terminal, "datasets", "upload", "Web", clicks).endswith(
        " --map FIELD=_id renames one. [ROW_REJECTED]"
    )
    renamed = ("--map", "event_id=_id")
    assert refused(terminal, "datasets", "upload", "Web", clicks, *renamed).endswith(
        " --map FIELD=timestamp renames one. [ROW_REJECTED]"
    )
    told(terminal, "datasets", "upload", "Web", clicks, *renamed, "--map", "ts=timestamp")

    # An export needs somewhere to go, and a policy that links.
    assert refused(terminal, "jobs", "create", "--to", "People") == (
        "There is no dataset 'People'. `profile-export datasets list` shows which there are. Looked for in "
        f"sandbox {terminal.sandbox}. [DATASET_NOT_FOUND]"
    )
    terminal.get("datasets", "create", "People", "--kind", "union")
    summary, _ = told(terminal, "jobs", "create", "--to", "People", "--events", "--watch")
    assert summary.endswith(
        "Note: The graph of the merge policy is none, which links nobody, though 2 identities occur with several "
        "primary ones: with the graph pdg their profiles would be one.\n"
    )
    terminal.get("policies", "create", "--graph", "pdg", "--name", "linked")
    summary, _ = told(
        terminal,
        "jobs",
        "create",
        "--to",
        "People",
        "--events",
        "--policy",
        "linked",
        "--mode",
        "replace",
        "--watch",
    )
    assert "profiles\t2 of 2 exported\n" in summary
    assert "Note: It has replaced the batch" in summary

    # What comes out is one row per person.
    told(terminal, "datasets", "download", "People", "--to", tmp_path / "out")
    rows = duckdb.execute(
        "SELECT customer_id, name, coalesce(email, mail) AS mail, city, spent, len(timeSeriesEvents)"
        f" FROM read_parquet('{tmp_path}/out/**/*.parquet') ORDER BY 1"
    ).fetchall()
    assert rows == [
        ("C-1", "Ada", "ada@example.com", "London", "12.50", 1),
        ("C-2", "Ben", "ben@example.com", None, None, 1),
    ]
