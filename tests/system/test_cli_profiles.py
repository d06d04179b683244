"""The command line about single profiles."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.system.terminal import Terminal


def lines(shown: str) -> list[str]:
    return [" ".join(line.split()) for line in shown.splitlines()]


@pytest.fixture
def policy(terminal: Terminal, tmp_path: Path) -> str:
    """A tenant in which Ada is known by two identities and has done three things; return a policy of graph `pdg`."""
    crm = terminal.get(
        *("datasets", "create", "CRM", "--kind", "record"),
        *("--primary", "crmId=CRM", "--identity", "email=Email"),
    )
    web = terminal.get("datasets", "create", "Web", "--kind", "event")
    people, visits = tmp_path / "crm.jsonl", tmp_path / "web.jsonl"
    people.write_text(json.dumps({"crmId": "C-1", "email": "ada@x.org", "person": {"firstName": "Ada"}}))
    visits.write_text(
        "\n".join(
            json.dumps(
                {
                    "_id": f"e{hour}",
                    "timestamp": f"2026-03-01T1{hour}:00:00Z",
                    "page": f"page {hour}",
                    "identityMap": {"Email": [{"id": "ada@x.org", "primary": True}]},
                }
            )
            for hour in range(3)
        )
    )
    terminal.get("datasets", "upload", crm, people)
    terminal.get("datasets", "upload", web, visits)
    return terminal.get("policies", "create", "--graph", "pdg")


def test_a_profile_is_shown_by_any_identity(terminal: Terminal, policy: str) -> None:
    shown = terminal.get("profiles", "show", "email:ada@x.org", "--policy", policy)
    data = json.loads(
        terminal.get(
            "profiles", "show", "CRM:C-1", "--policy", policy, "--field", "person.firstName", "--json"
        )
    )

    assert {"identities CRM:C-1", "Email:ada@x.org", f"policy {policy} version 1"} <= set(lines(shown))
    assert {"field value", "crmId C-1", "person.firstName Ada"} <= set(lines(shown))
    explained = terminal.get(
        "profiles", "show", "CRM:C-1", "--policy", policy, "--field", "person.firstName", "--explain"
    )
    assert "field dataset batch ingested value" in lines(explained)
    assert any(
        line.startswith("person.firstName won ") and line.endswith('"Ada"') for line in lines(explained)
    )
    assert data["values"] == {"person": {"firstName": "Ada"}}
    assert data["identities"] == [
        {"namespace": "CRM", "id": "C-1"},
        {"namespace": "Email", "id": "ada@x.org"},
    ]


def test_events_are_listed_in_either_order_within_a_window(terminal: Terminal, policy: str) -> None:
    events = ("profiles", "events", "CRM:C-1", "--policy", policy)

    shown = terminal.get(*events, "--field", "page")
    whole = terminal.get(*events, "--limit", "1").splitlines()[1:]
    latest = json.loads(terminal.get(*events, "--latest-first", "--limit", "2", "--json"))
    window = ("--from", "2026-03-01T11:00:00Z", "--to", "2026-03-01T12:00:00Z")
    within = json.loads(terminal.get(*events, *window, "--filter", "id != e2", "--json"))

    told = lines(shown)
    assert told[0] == "time id field value"
    assert [line.split()[1:] for line in told[1:]] == [
        [f"e{hour}", "page", "page", f"{hour}"] for hour in range(3)
    ]
    assert len(whole) > 1
    assert len({tuple(line.split("\t")[:2]) for line in whole}) == 1
    assert [event["id"] for event in latest] == ["e2", "e1"]
    assert [event["values"]["page"] for event in within] == ["page 1"]


def test_nobody_and_nothing_are_told_in_a_line(terminal: Terminal, policy: str) -> None:
    unknown = terminal.type("profiles", "show", "CRM:C-9")
    wrong = terminal.type("profiles", "show", "ada@x.org")
    none = terminal.get("profiles", "events", "CRM:C-1", "--filter", "dataset_id = none")

    assert (unknown.returncode, unknown.stdout, unknown.stderr.count("\n")) == (1, "", 1)
    assert "PROFILE_NOT_FOUND" in unknown.stderr
    assert (wrong.returncode, wrong.stdout, wrong.stderr.count("\n")) == (2, "", 1)
    assert "write it as Email:ada@example.com" in wrong.stderr
    assert none == "No events."
